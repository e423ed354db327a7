"""Tiles of heads that the kernels on whole sequences share. A ``Heads`` is what heads.py says; offsets are 64-bit."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def token_span(p_bounds, i_sequence, tokens):
    """The tokens of a sequence, from the first to behind the last: all where nothing is packed."""
    i_begin = i_sequence * 0
    i_end = i_begin + tokens
    if p_bounds is not None:
        i_begin = tl.minimum(tl.maximum(tl.load(p_bounds + i_sequence).to(tl.int64), 0), i_end)
        i_end = tl.minimum(tl.maximum(tl.load(p_bounds + i_sequence + 1).to(tl.int64), 0), i_end)
    return i_begin, i_end


@triton.jit
def o_heads(heads, i_sequence, i_token, i_head, BLOCK_D: tl.constexpr):
    """Where rows of heads lie, (BLOCK_N, BLOCK_D): a token and a head each, or one head of all."""
    i_channel = tl.arange(0, BLOCK_D).to(tl.int64)
    o_row = i_sequence * heads.sequence + i_token * heads.token + i_head * heads.head
    return o_row[:, None] + (i_channel * heads.channel)[None, :]


@triton.jit
def load_heads(heads, i_sequence, i_token, i_head, m_row, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of heads, (BLOCK_N, BLOCK_D), in their own dtype: they are operands of products."""
    m_channel = tl.arange(0, BLOCK_D) < WIDTH
    p_row = heads.pointer + o_heads(heads, i_sequence, i_token, i_head, BLOCK_D)
    return tl.load(p_row, mask=m_row[:, None] & m_channel[None, :], other=0.0)


@triton.jit
def store_heads(heads, b_rows, i_sequence, i_token, i_head, m_row, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    m_channel = tl.arange(0, BLOCK_D) < WIDTH
    p_row = heads.pointer + o_heads(heads, i_sequence, i_token, i_head, BLOCK_D)
    tl.store(p_row, b_rows.to(heads.pointer.dtype.element_ty), mask=m_row[:, None] & m_channel[None, :])


@triton.jit
def add_to_softmax(b_scores, b_max, b_sum):
    """The largest score of each row and the sum of the exponentials below it, with a tile more, (BLOCK_M,) each."""
    b_new = tl.maximum(b_max, tl.max(b_scores, 1))
    b_shift = finite_shift(b_new)
    b_sum = b_sum * tl.exp(b_max - b_shift) + tl.sum(tl.exp(b_scores - b_shift[:, None]), 1)
    return b_new, b_sum


@triton.jit
def finite_shift(b_max):
    """The largest scores, 0 where there are none: -inf from -inf would be NaN."""
    return tl.where(b_max == -float("inf"), 0.0, b_max)
