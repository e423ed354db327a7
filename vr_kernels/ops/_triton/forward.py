"""The forward kernel: scores, softmax and the mix of the values, some heads of a window a program."""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.features import dot_features, mix_features, sources
from vr_kernels.ops._triton.window import locate_heads, locate_slots, row_pointers


@triton.jit
def softmax(b_score, m_score):
    """Softmax over the slots of ``m_score`` and its log-sum-exp; a row with nothing left gives zeros and -inf."""
    b_score = tl.where(m_score, b_score, float("-inf"))
    b_max = tl.max(b_score, 1)
    b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_exp = tl.exp(b_score - b_max[:, None])
    b_sum = tl.sum(b_exp, 1)
    b_lse = b_max + tl.log(b_sum)
    return tl.div_rn(b_exp, tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]), b_lse


@triton.jit(do_not_specialize=["first_window", "n_h", "n_w", "row_count"])
def window_attention_forward(
    query,
    out,
    attention,
    lse,
    keys,
    values,
    p_index,
    bias,
    p_saliency,
    p_norm_weight,
    p_norm_bias,
    norm_eps,
    scale,
    first_window,
    n_h,
    n_w,
    row_count,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    KEY_WIDTHS: tl.constexpr,
    VALUE_WIDTHS: tl.constexpr,
    NORM_GROUPS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_H heads that share a kv head, in one window.

    Moves the heads' queries and outputs once, and the window's features twice, the second time from L2: a window of the
    papers (55 KB at s=3) is too large to wait in registers.
    """
    i_window, i_kv, i_head, m_head = locate_heads(HEADS, KV_HEADS, BLOCK_H)
    i_row, place, m_slot = locate_slots(p_index, i_window, first_window, n_h, n_w, row_count, SLOTS, S_H, S_W, BLOCK_K)
    i_slot = tl.arange(0, BLOCK_K)
    key_source, value_source = sources(
        keys,
        values,
        place,
        i_kv,
        m_slot,
        p_norm_weight,
        p_norm_bias,
        norm_eps,
        KEY_WIDTHS,
        NORM_GROUPS,
        BLOCK_K,
        BLOCK_C,
    )

    b_score = dot_features(
        query, i_window, i_head, m_head, key_source, m_slot, KEY_WIDTHS, BLOCK_H, BLOCK_K, BLOCK_C
    )  # (BLOCK_H, BLOCK_K)
    b_score *= scale
    m_weight = m_head[:, None] & (i_slot < SLOTS)[None, :]
    if bias is not None:
        b_score += tl.load(row_pointers(bias, i_window, i_head, i_slot), mask=m_weight, other=0.0)
    b_attention, b_lse = softmax(b_score, m_slot[None, :])
    tl.store(row_pointers(attention, i_window, i_head, i_slot), b_attention, mask=m_weight)
    if lse is not None:
        tl.store(lse.pointer + i_window * lse.window + i_head * lse.head, b_lse, mask=m_head)

    b_weight = b_attention
    if p_saliency is not None:
        b_weight *= tl.load(p_saliency + i_row, mask=m_slot, other=0.0)[None, :]
    b_weight = b_weight.to(query.pointer.dtype.element_ty)
    # ``out`` may be ``query``: no thread writes before every thread has read.
    tl.debug_barrier()
    mix_features((b_weight,), (out,), i_window, i_head, m_head, value_source, m_slot, VALUE_WIDTHS, BLOCK_C)
