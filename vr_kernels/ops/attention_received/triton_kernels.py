"""Attention received in Triton, by square tiles of the map that is never made. Sums (B, h, N) or (h, T) are contiguous.

A program owns a block of rows or of columns of one head and passes over the others that may see it. Packed tokens lie
in one batch; a block may hold several sequences. Scores, softmax and sums are float32.

Gradients have one more input, p_spoilt: NaN for a head that holds what is no number, else 0. Such a head is read as
zeros, and its NaN goes in with the numbers of its row or column, where it is seen: as an operand of a product it would
spoil those that do not see it, 0 times NaN being NaN.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.sequences import add_to_softmax, finite_shift, load_heads, store_heads


@triton.jit
def _owned(tokens, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's batch and head, its first token, and where its head's sums lie."""
    i_program = tl.program_id(0).to(tl.int64)
    blocks = (tokens + BLOCK - 1) // BLOCK
    i_batch_head = i_program // blocks
    return i_batch_head // HEADS, i_batch_head % HEADS, i_program % blocks * BLOCK, i_batch_head * tokens


@triton.jit
def _span(packed, i_first, tokens, BLOCK: tl.constexpr):
    """From the first to behind the last token of the sequences that a block's tokens belong to."""
    i_begin = i_first * 0
    i_end = i_begin + tokens
    if len(packed) > 0:
        p_sequence, p_bounds, sequences = packed
        i_from = tl.minimum(tl.maximum(tl.load(p_sequence + i_first), 0), sequences)
        i_to = tl.minimum(tl.load(p_sequence + tl.minimum(i_first + BLOCK, tokens) - 1) + 1, sequences)
        i_begin = tl.minimum(tl.maximum(tl.load(p_bounds + i_from).to(tl.int64), 0), tokens)
        i_end = tl.minimum(tl.maximum(tl.load(p_bounds + i_to).to(tl.int64), 0), tokens)
    return i_begin, i_end


@triton.jit
def _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL: tl.constexpr):
    """A tile's scores, -inf where a row does not see a column, (BLOCK, BLOCK)."""
    m_row, m_column = i_row < tokens, i_column < tokens
    m_seen = m_row[:, None] & m_column[None, :]
    if len(packed) > 0:
        p_sequence, _, sequences = packed
        i_of_row = tl.load(p_sequence + i_row, mask=m_row, other=-1)
        i_of_column = tl.load(p_sequence + i_column, mask=m_column, other=-1)
        m_inside = (i_of_row >= 0) & (i_of_row < sequences)
        m_seen = m_seen & m_inside[:, None] & (i_of_row[:, None] == i_of_column[None, :])
    if CAUSAL:
        m_seen = m_seen & (i_column[None, :] <= i_row[:, None])
    b_scores = tl.dot(b_query, tl.trans(b_key), input_precision="ieee") * scale
    return tl.where(m_seen, b_scores, -float("inf"))


@triton.jit
def _weights(b_scores, b_lse):
    """exp(scores - lse)."""
    return tl.exp(b_scores - b_lse[:, None])


@triton.jit
def _where_seen(b_scores, b_tile):
    """A tile's numbers, 0 where a column is not seen, whatever stands there: a factor of 0 would leave NaN."""
    return tl.where(b_scores == -float("inf"), 0.0, b_tile)


@triton.jit(do_not_specialize=["tokens"])
def received_lse(
    query,
    key,
    packed,
    p_lse,
    scale,
    tokens,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: the log-sum-exp of a block of one head's rows. Reads the keys that they see once."""
    i_batch, i_head, i_first, o_sums = _owned(tokens, HEADS, BLOCK)
    i_row = i_first + tl.arange(0, BLOCK)
    b_query = load_heads(query, i_batch, i_row, i_head, i_row < tokens, WIDTH, BLOCK_D)
    b_max = tl.full((BLOCK,), -float("inf"), tl.float32)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    i_begin, i_end = _span(packed, i_first, tokens, BLOCK)
    if CAUSAL:
        i_end = tl.minimum(i_end, i_first + BLOCK)
    for i in range(i_begin, i_end, BLOCK):
        i_column = i + tl.arange(0, BLOCK)
        b_key = load_heads(key, i_batch, i_column, i_head // GROUPS, i_column < tokens, WIDTH, BLOCK_D)
        b_scores = _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL)
        b_max, b_sum = add_to_softmax(b_scores, b_max, b_sum)
    tl.store(p_lse + o_sums + i_row, finite_shift(b_max) + tl.log(b_sum), mask=i_row < tokens)


@triton.jit(do_not_specialize=["tokens"])
def received_forward(
    query,
    key,
    packed,
    p_lse,
    p_columns,
    scale,
    tokens,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: what a block of columns receives from one head's rows. Reads the rows that see it once."""
    i_batch, i_head, i_first, o_sums = _owned(tokens, HEADS, BLOCK)
    i_column = i_first + tl.arange(0, BLOCK)
    b_key = load_heads(key, i_batch, i_column, i_head // GROUPS, i_column < tokens, WIDTH, BLOCK_D)
    b_columns = tl.zeros((BLOCK,), tl.float32)
    i_begin, i_end = _span(packed, i_first, tokens, BLOCK)
    if CAUSAL:
        i_begin = tl.maximum(i_begin, i_first)
    for i in range(i_begin, i_end, BLOCK):
        i_row = i + tl.arange(0, BLOCK)
        b_query = load_heads(query, i_batch, i_row, i_head, i_row < tokens, WIDTH, BLOCK_D)
        b_lse = tl.load(p_lse + o_sums + i_row, mask=i_row < tokens, other=0.0)
        b_scores = _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL)
        b_columns += tl.sum(_where_seen(b_scores, _weights(b_scores, b_lse)), 0)
    tl.store(p_columns + o_sums + i_column, b_columns, mask=i_column < tokens)


@triton.jit(do_not_specialize=["tokens"])
def received_rows_gradient(
    query,
    key,
    packed,
    p_lse,
    p_grad,
    p_total,
    p_spoilt,
    d_query,
    scale,
    tokens,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAUSAL: tl.constexpr,
    GIVEN_LSE: tl.constexpr,
    NEEDS_QUERY: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: t = sum p g of a block of one head's rows, and dq = scale sum p (g - t) k; p g k for a given lse."""
    OPERAND: tl.constexpr = key.pointer.dtype.element_ty if TENSOR_CORES else tl.float32
    i_batch, i_head, i_first, o_sums = _owned(tokens, HEADS, BLOCK)
    i_row = i_first + tl.arange(0, BLOCK)
    b_query = load_heads(query, i_batch, i_row, i_head, i_row < tokens, WIDTH, BLOCK_D)
    b_lse = tl.load(p_lse + o_sums + i_row, mask=i_row < tokens, other=0.0)
    i_begin, i_end = _span(packed, i_first, tokens, BLOCK)
    if CAUSAL:
        i_end = tl.minimum(i_end, i_first + BLOCK)
    b_total = tl.zeros((BLOCK,), tl.float32)
    for i in range(i_begin, i_end, BLOCK):
        i_column = i + tl.arange(0, BLOCK)
        b_key = load_heads(key, i_batch, i_column, i_head // GROUPS, i_column < tokens, WIDTH, BLOCK_D)
        b_grad = tl.load(p_grad + o_sums + i_column, mask=i_column < tokens, other=0.0)
        b_scores = _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL)
        b_total += tl.sum(_where_seen(b_scores, _weights(b_scores, b_lse) * b_grad[None, :]), 1)
    tl.store(p_total + o_sums + i_row, b_total, mask=i_row < tokens)
    if NEEDS_QUERY:
        if GIVEN_LSE:
            b_total = tl.zeros((BLOCK,), tl.float32)
        o_keys = (i_batch * (HEADS // GROUPS) + i_head // GROUPS) * tokens
        b_d_query = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for i in range(i_begin, i_end, BLOCK):
            i_column = i + tl.arange(0, BLOCK)
            b_spoilt = tl.load(p_spoilt + o_keys + i_column, mask=i_column < tokens, other=0.0)
            m_key = (i_column < tokens) & (b_spoilt == 0.0)
            b_key = load_heads(key, i_batch, i_column, i_head // GROUPS, m_key, WIDTH, BLOCK_D)
            b_grad = b_spoilt + tl.load(p_grad + o_sums + i_column, mask=i_column < tokens, other=0.0)
            b_scores = _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL)
            b_d_scores = _where_seen(b_scores, _weights(b_scores, b_lse) * (b_grad[None, :] - b_total[:, None]))
            b_d_query = tl.dot(b_d_scores.to(OPERAND), b_key.to(OPERAND), b_d_query, input_precision="ieee")
        store_heads(d_query, b_d_query * scale, i_batch, i_row, i_head, i_row < tokens, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=["tokens"])
def received_key_gradient(
    query,
    key,
    packed,
    p_lse,
    p_grad,
    p_total,
    p_spoilt,
    d_key,
    scale,
    tokens,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    CAUSAL: tl.constexpr,
    GIVEN_LSE: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: dk = scale sum p (g - t) q of a block of one kv head's columns, over the heads that share it."""
    OPERAND: tl.constexpr = query.pointer.dtype.element_ty if TENSOR_CORES else tl.float32
    i_batch, i_kv, i_first, _ = _owned(tokens, HEADS // GROUPS, BLOCK)
    i_column = i_first + tl.arange(0, BLOCK)
    b_key = load_heads(key, i_batch, i_column, i_kv, i_column < tokens, WIDTH, BLOCK_D)
    b_d_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    i_begin, i_end = _span(packed, i_first, tokens, BLOCK)
    if CAUSAL:
        i_begin = tl.maximum(i_begin, i_first)
    for j in range(GROUPS):
        i_head = i_kv * GROUPS + j
        o_sums = (i_batch * HEADS + i_head) * tokens
        b_grad = tl.load(p_grad + o_sums + i_column, mask=i_column < tokens, other=0.0)
        for i in range(i_begin, i_end, BLOCK):
            i_row = i + tl.arange(0, BLOCK)
            b_spoilt = tl.load(p_spoilt + o_sums + i_row, mask=i_row < tokens, other=0.0)
            m_query = (i_row < tokens) & (b_spoilt == 0.0)
            b_query = load_heads(query, i_batch, i_row, i_head, m_query, WIDTH, BLOCK_D)
            b_lse = b_spoilt + tl.load(p_lse + o_sums + i_row, mask=i_row < tokens, other=0.0)
            b_scores = _scores(b_query, b_key, scale, packed, i_row, i_column, tokens, CAUSAL)
            b_d_scores = _weights(b_scores, b_lse)
            if GIVEN_LSE:
                b_d_scores *= b_grad[None, :]
            else:
                b_total = tl.load(p_total + o_sums + i_row, mask=i_row < tokens, other=0.0)
                b_d_scores *= b_grad[None, :] - b_total[:, None]
            b_d_scores = tl.trans(_where_seen(b_scores, b_d_scores).to(OPERAND))
            b_d_key = tl.dot(b_d_scores, b_query.to(OPERAND), b_d_key, input_precision="ieee")
    store_heads(d_key, b_d_key * scale, i_batch, i_column, i_kv, i_column < tokens, WIDTH, BLOCK_D)
