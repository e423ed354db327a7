"""The gradient of the feature rows, without atomics: every row's sum runs in one program, in one order.

Both kernels add the same two terms, either of which may be absent, to a float32 (rows, kv heads, channels) tensor:

    scale sum_h grad_scores_h query_h        sum_h attention_h saliency grad_out_h
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.window import locate_slots, row_pointers


@triton.jit
def _locate_columns(WIDTH: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's outermost number, kv head and channels."""
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    i_program = tl.program_id(0).to(tl.int64)
    i_channel = i_program % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
    return i_program // (BLOCKS * KV_HEADS), i_program // BLOCKS % KV_HEADS, i_channel


@triton.jit
def _add_term(b_sum, weights, b_factor, rows, i_window, i_head, m_head, i_channel, m_channel, i_slot, m_slot):
    """b_sum (BLOCK_K, BLOCK_C) += sum over the heads of weights (factor each slot) times head rows."""
    p_weight = row_pointers(weights, i_window, i_head, i_slot)
    b_weight = tl.load(p_weight, mask=m_head[:, None] & m_slot[None, :], other=0.0) * b_factor  # (BLOCK_H, BLOCK_K)
    p_row = row_pointers(rows, i_window, i_head, i_channel)
    b_row = tl.load(p_row, mask=m_head[:, None] & m_channel[None, :], other=0.0)  # (BLOCK_H, BLOCK_C)
    return tl.dot(tl.trans(b_weight.to(b_row.dtype)), b_row, b_sum, input_precision="ieee")


@triton.jit(do_not_specialize=["first_window", "n_h", "n_w", "row_count"])
def disjoint_windows(
    p_gradient,
    query,
    grad_scores,
    grad_out,
    attention,
    p_saliency,
    scale,
    first_window,
    n_h,
    n_w,
    row_count,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: some channels of all rows of one window of a grid, whose rows are no other window's.

    Reads those channels of the head rows once, and reads and writes the gradient once.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    i_window, i_kv, i_channel = _locate_columns(WIDTH, KV_HEADS, BLOCK_C)
    i_row, _, m_slot = locate_slots(None, i_window, first_window, n_h, n_w, row_count, SLOTS, S_H, S_W, BLOCK_K)
    i_slot = tl.arange(0, BLOCK_K)
    m_channel = i_channel < WIDTH
    b_saliency = tl.full([1, BLOCK_K], 1.0, tl.float32)
    if p_saliency is not None:
        b_saliency = tl.load(p_saliency + i_row, mask=m_slot, other=0.0)[None, :]
    b_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    for h in range(0, GROUP, BLOCK_H):
        i_member = h + tl.arange(0, BLOCK_H)
        i_head, m_head = i_kv * GROUP + i_member, i_member < GROUP
        if query is not None:
            b_sum = _add_term(
                b_sum, grad_scores, scale, query, i_window, i_head, m_head, i_channel, m_channel, i_slot, m_slot
            )
        if grad_out is not None:
            b_sum = _add_term(
                b_sum, attention, b_saliency, grad_out, i_window, i_head, m_head, i_channel, m_channel, i_slot, m_slot
            )
    p_sum = p_gradient + ((i_row * KV_HEADS + i_kv) * WIDTH)[:, None] + i_channel[None, :]
    m_sum = m_slot[:, None] & m_channel[None, :]
    tl.store(p_sum, tl.load(p_sum, mask=m_sum) + b_sum, mask=m_sum)


@triton.jit
def _weighted_rows(weights, factor, rows, i_window, i_slot, i_head, m_head, i_channel, m_channel):
    """Sum over some heads of one slot's weight times the head row, (BLOCK_C,)."""
    p_weight = weights.pointer + i_window * weights.window + i_head * weights.head + i_slot
    b_weight = tl.load(p_weight, mask=m_head, other=0.0) * factor  # (BLOCK_H,)
    p_row = row_pointers(rows, i_window, i_head, i_channel)
    b_row = tl.load(p_row, mask=m_head[:, None] & m_channel[None, :], other=0.0).to(tl.float32)  # (BLOCK_H, BLOCK_C)
    return tl.sum(b_weight[:, None] * b_row, 0)


@triton.jit
def overlapping_windows(
    p_gradient,
    query,
    grad_scores,
    grad_out,
    attention,
    p_saliency,
    scale,
    p_reader,
    p_first,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: some channels of one feature row, over all (window, slot) that read it, in their order.

    Row m's readers are reader[first[m]:first[m + 1]], window * SLOTS + slot each. Re-reads the head rows of a window
    for each of its slots: a cheaper order would need atomics, or a buffer for the gradients of all slots.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    i_row, i_kv, i_channel = _locate_columns(WIDTH, KV_HEADS, BLOCK_C)
    m_channel = i_channel < WIDTH
    first, last = tl.load(p_first + i_row), tl.load(p_first + i_row + 1)
    if first == last:
        return
    saliency = 1.0
    if p_saliency is not None:
        saliency = tl.load(p_saliency + i_row)
    p_sum = p_gradient + (i_row * KV_HEADS + i_kv) * WIDTH + i_channel
    b_sum = tl.load(p_sum, mask=m_channel, other=0.0)
    for i in range(first, last):
        i_reader = tl.load(p_reader + i)
        i_window, i_slot = i_reader // SLOTS, i_reader % SLOTS
        for h in range(0, GROUP, BLOCK_H):
            i_member = h + tl.arange(0, BLOCK_H)
            i_head, m_head = i_kv * GROUP + i_member, i_member < GROUP
            if query is not None:
                b_sum += _weighted_rows(
                    grad_scores, scale, query, i_window, i_slot, i_head, m_head, i_channel, m_channel
                )
            if grad_out is not None:
                b_sum += _weighted_rows(
                    attention, saliency, grad_out, i_window, i_slot, i_head, m_head, i_channel, m_channel
                )
    tl.store(p_sum, b_sum, mask=m_channel)
