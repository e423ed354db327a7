"""Attention importance in Triton. A weight (B, h, R, N) has a row for each (head, row), those of a kv head together.

Scores, softmax and sums are float32. Row m of a kv head is row m % R of its query head m // R. Masked keys are not
read. A packed call's weights have one batch of T tokens: ``w_sequence``, the stride of sequences, is 0.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.sequences import add_to_softmax, finite_shift, load_heads, store_heads, token_span


@triton.jit
def _present(p_mask, i_sequence, i_token, i_end, tokens):
    """Which of the tokens may be attended, (BLOCK_N,)."""
    m_token = i_token < i_end
    if p_mask is not None:
        m_token = m_token & (tl.load(p_mask + i_sequence * tokens + i_token, mask=m_token, other=0) != 0)
    return m_token


@triton.jit
def _rows(i_kv, i_first, rows, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Rows of a kv head from i_first on: their query head, number there, place in the weights, existence."""
    i_m = i_first + tl.arange(0, BLOCK_M).to(tl.int64)  # what follows from it is multiplied by numbers of tokens
    m_row = i_m < GROUPS * rows
    return i_kv * GROUPS + i_m // rows, i_m % rows, i_kv * GROUPS * rows + i_m, m_row


@triton.jit(do_not_specialize=["tokens", "rows", "w_sequence"])
def importance_forward(
    query,
    key,
    p_mask,
    p_bounds,
    p_weights,
    w_sequence,
    scale,
    tokens,
    rows,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_M rows of one kv head of a sequence.

    Reads its keys once; writes scores, reads them back and writes weights: small beside the keys, and in the cache.
    """
    i_program = tl.program_id(0).to(tl.int64)
    blocks = (GROUPS * rows + BLOCK_M - 1) // BLOCK_M
    i_sequence, i_kv = i_program // blocks // KV_HEADS, i_program // blocks % KV_HEADS
    i_head, i_row, i_place, m_row = _rows(i_kv, i_program % blocks * BLOCK_M, rows, GROUPS, BLOCK_M)
    b_query = load_heads(query, i_sequence, i_row, i_head, m_row, WIDTH, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    p_row = p_weights + i_sequence * w_sequence + i_place * tokens
    i_begin, i_end = token_span(p_bounds, i_sequence, tokens)
    b_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for i_first in range(i_begin, i_end, BLOCK_N):
        i_token = i_first + tl.arange(0, BLOCK_N)
        m_token = _present(p_mask, i_sequence, i_token, i_end, tokens)
        b_key = load_heads(key, i_sequence, i_token, i_kv, m_token, WIDTH, BLOCK_D)  # (BLOCK_N, BLOCK_D)
        b_scores = tl.dot(b_query, tl.trans(b_key), input_precision="ieee") * scale  # (BLOCK_M, BLOCK_N)
        b_scores = tl.where(m_token[None, :], b_scores, -float("inf") if SOFTMAX else 0.0)
        tl.store(p_row[:, None] + i_token[None, :], b_scores, mask=m_row[:, None] & (i_token < i_end)[None, :])
        if SOFTMAX:
            b_max, b_sum = add_to_softmax(b_scores, b_max, b_sum)
    if SOFTMAX:
        tl.debug_barrier()  # what one thread wrote another may read back
        b_shift = finite_shift(b_max)
        b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)  # of a row with nothing left
        for i_first in range(i_begin, i_end, BLOCK_N):
            i_token = i_first + tl.arange(0, BLOCK_N)
            m_weight = m_row[:, None] & (i_token < i_end)[None, :]
            p_weight = p_row[:, None] + i_token[None, :]
            b_scores = tl.load(p_weight, mask=m_weight, other=0.0)
            tl.store(p_weight, tl.exp(b_scores - b_shift[:, None]) / b_sum[:, None], mask=m_weight)


@triton.jit
def _gradient_tile(grad, p_weights, i_sequence, w_sequence, tokens, rows_of, i_token, m_tile):
    """Some rows' gradient and weights, (BLOCK_M, BLOCK_N) each; 1 for weights where there is no softmax."""
    i_head, i_row, i_place, _ = rows_of
    p_grad = grad.pointer + i_sequence * grad.sequence + (i_head * grad.head + i_row * grad.row)[:, None]
    b_grad = tl.load(p_grad + (i_token * grad.token)[None, :], mask=m_tile, other=0.0)
    b_weights = tl.where(m_tile, 1.0, 0.0)
    if p_weights is not None:
        p_weight = p_weights + (i_sequence * w_sequence + i_place * tokens)[:, None] + i_token[None, :]
        b_weights = tl.load(p_weight, mask=m_tile, other=0.0)
    return b_grad, b_weights


@triton.jit(do_not_specialize=["tokens", "rows", "w_sequence"])
def importance_rows_gradient(
    grad,
    key,
    p_mask,
    p_bounds,
    p_weights,
    w_sequence,
    p_delta,
    d_query,
    scale,
    tokens,
    rows,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    NEEDS_QUERY: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: delta = sum w grad of BLOCK_M rows of one kv head, and dq = scale sum w (grad - delta) k.

    Reads its keys once, its weights and gradients twice. Without a softmax w is 1 and delta 0.
    """
    i_program = tl.program_id(0).to(tl.int64)
    OPERAND: tl.constexpr = key.pointer.dtype.element_ty if TENSOR_CORES else tl.float32
    blocks = (GROUPS * rows + BLOCK_M - 1) // BLOCK_M
    i_sequence, i_kv = i_program // blocks // KV_HEADS, i_program // blocks % KV_HEADS
    rows_of = _rows(i_kv, i_program % blocks * BLOCK_M, rows, GROUPS, BLOCK_M)
    i_head, i_row, i_place, m_row = rows_of
    i_begin, i_end = token_span(p_bounds, i_sequence, tokens)
    b_delta = tl.zeros((BLOCK_M,), tl.float32)
    if p_weights is not None:
        for i_first in range(i_begin, i_end, BLOCK_N):
            i_token = i_first + tl.arange(0, BLOCK_N)
            m_tile = m_row[:, None] & _present(p_mask, i_sequence, i_token, i_end, tokens)[None, :]
            b_grad, b_weights = _gradient_tile(
                grad, p_weights, i_sequence, w_sequence, tokens, rows_of, i_token, m_tile
            )
            b_delta += tl.sum(b_weights * b_grad, 1)
        tl.store(p_delta + i_sequence * KV_HEADS * GROUPS * rows + i_place, b_delta, mask=m_row)
    if NEEDS_QUERY:
        b_d_query = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for i_first in range(i_begin, i_end, BLOCK_N):
            i_token = i_first + tl.arange(0, BLOCK_N)
            m_token = _present(p_mask, i_sequence, i_token, i_end, tokens)
            b_grad, b_weights = _gradient_tile(
                grad, p_weights, i_sequence, w_sequence, tokens, rows_of, i_token, m_row[:, None] & m_token[None, :]
            )
            b_d_scores = (b_weights * (b_grad - b_delta[:, None])).to(OPERAND)  # (BLOCK_M, BLOCK_N)
            b_key = load_heads(key, i_sequence, i_token, i_kv, m_token, WIDTH, BLOCK_D).to(OPERAND)
            b_d_query = tl.dot(b_d_scores, b_key, b_d_query, input_precision="ieee")
        store_heads(d_query, b_d_query * scale, i_sequence, i_row, i_head, m_row, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=["tokens", "rows", "sequences", "w_sequence"])
def importance_key_gradient(
    grad,
    query,
    p_mask,
    p_bounds,
    p_sequence,
    p_weights,
    w_sequence,
    p_delta,
    d_key,
    scale,
    tokens,
    rows,
    sequences,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: dk = scale sum w (grad - delta) q of BLOCK_N tokens of one kv head, over all rows of their sequence.

    Packed tokens may be of several sequences, which come one after the other; one outside of all gets 0.
    """
    i_program = tl.program_id(0).to(tl.int64)
    OPERAND: tl.constexpr = query.pointer.dtype.element_ty if TENSOR_CORES else tl.float32
    blocks = (tokens + BLOCK_N - 1) // BLOCK_N
    i_batch, i_kv = i_program // blocks // KV_HEADS, i_program // blocks % KV_HEADS
    i_first = i_program % blocks * BLOCK_N
    i_token = i_first + tl.arange(0, BLOCK_N)
    i_from, i_to = i_batch, i_batch + 1  # sequences
    if p_sequence is not None:
        i_from = tl.maximum(tl.load(p_sequence + i_first), 0)
        i_to = tl.minimum(tl.load(p_sequence + tl.minimum(i_first + BLOCK_N, tokens) - 1) + 1, sequences)
    b_d_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i_sequence in range(i_from, i_to):
        i_begin, i_end = token_span(p_bounds, i_sequence, tokens)
        m_token = (i_token >= i_begin) & _present(p_mask, i_sequence, i_token, i_end, tokens)
        for i_m in range(0, GROUPS * rows, BLOCK_M):
            rows_of = _rows(i_kv, i_m, rows, GROUPS, BLOCK_M)
            i_head, i_row, i_place, m_row = rows_of
            b_grad, b_weights = _gradient_tile(
                grad, p_weights, i_sequence, w_sequence, tokens, rows_of, i_token, m_row[:, None] & m_token[None, :]
            )
            if p_weights is not None:
                p_row = p_delta + i_sequence * KV_HEADS * GROUPS * rows + i_place
                b_grad -= tl.load(p_row, mask=m_row, other=0.0)[:, None]
            b_d_scores = (b_weights * b_grad).to(OPERAND)  # (BLOCK_M, BLOCK_N)
            b_query = load_heads(query, i_sequence, i_row, i_head, m_row, WIDTH, BLOCK_D).to(OPERAND)
            b_d_key = tl.dot(tl.trans(b_d_scores), b_query, b_d_key, input_precision="ieee")
    store_heads(d_key, b_d_key * scale, i_batch, i_token, i_kv, i_token < tokens, WIDTH, BLOCK_D)
