"""The backward kernel: from the output's gradient to those of scores and queries, some heads of a window a program."""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.features import dot_features, mix_features, sources
from vr_kernels.ops._triton.window import locate_heads, locate_slots, row_pointers


@triton.jit
def _per_head(rows, i_window, i_head, m_head):
    """A (windows, heads, 1) tensor's numbers, (BLOCK_H, 1)."""
    return tl.load(row_pointers(rows, i_window, i_head, tl.arange(0, 1)), mask=m_head[:, None], other=0.0)


@triton.jit(do_not_specialize=["first_window", "n_h", "n_w", "row_count"])
def window_attention_backward(
    grad_out,
    attention,
    grad_attention,
    grad_lse,
    value_constant,
    grad_scores,
    grad_query,
    pooled,
    slot_products,
    keys,
    values,
    p_index,
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

        t_j = grad_out . v_j + value_constant        dp_j = saliency_j t_j + grad_attention_j
        grad_scores = p (dp - sum p dp) + p grad_lse
        grad_query = scale sum_j grad_scores_j k_j   pooled = sum_j p_j saliency_j v_j   slot_products_j = p_j t_j

    Reads the heads' gradients once and the features twice: where the values are the keys, both mixes share one reading.
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

    b_product = dot_features(
        grad_out, i_window, i_head, m_head, value_source, m_slot, VALUE_WIDTHS, BLOCK_H, BLOCK_K, BLOCK_C
    )  # (BLOCK_H, BLOCK_K): t
    if value_constant is not None:
        b_product += _per_head(value_constant, i_window, i_head, m_head)
    m_weight = m_head[:, None] & (i_slot < SLOTS)[None, :]
    b_attention = tl.load(row_pointers(attention, i_window, i_head, i_slot), mask=m_weight & m_slot[None, :], other=0.0)
    if slot_products is not None:
        tl.store(row_pointers(slot_products, i_window, i_head, i_slot), b_attention * b_product, mask=m_weight)

    b_grad = b_product  # of the attention weights
    b_pool = b_attention
    if p_saliency is not None:
        b_saliency = tl.load(p_saliency + i_row, mask=m_slot, other=0.0)[None, :]
        b_grad *= b_saliency
        b_pool *= b_saliency
    if grad_attention is not None:
        b_grad += tl.load(row_pointers(grad_attention, i_window, i_head, i_slot), mask=m_weight, other=0.0)
    b_grad = b_attention * (b_grad - tl.sum(b_attention * b_grad, 1)[:, None])
    # The weights sum to one but for rounding, so this sum is zero but for what would multiply the mean feature.
    b_grad -= b_attention * tl.sum(b_grad, 1)[:, None]
    if grad_lse is not None:
        b_grad += b_attention * _per_head(grad_lse, i_window, i_head, m_head)
    tl.store(row_pointers(grad_scores, i_window, i_head, i_slot), b_grad, mask=m_weight)

    dtype = grad_out.pointer.dtype.element_ty
    b_grad = (b_grad * scale).to(dtype)
    b_pool = b_pool.to(dtype)
    if values is None and grad_query is not None and pooled is not None:
        mix_features(
            (b_grad, b_pool), (grad_query, pooled), i_window, i_head, m_head, key_source, m_slot, KEY_WIDTHS, BLOCK_C
        )
    else:
        if grad_query is not None:
            mix_features((b_grad,), (grad_query,), i_window, i_head, m_head, key_source, m_slot, KEY_WIDTHS, BLOCK_C)
        if pooled is not None:
            mix_features((b_pool,), (pooled,), i_window, i_head, m_head, value_source, m_slot, VALUE_WIDTHS, BLOCK_C)
