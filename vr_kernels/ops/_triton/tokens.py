"""Kernels on the rows of a stream (B, T, D): the text's maximum, gather, norm, scatter; a row or a part a program.

A stream comes as address, stride of samples and stride of rows. A row of a language model's width fits the registers of
one program: it is read once. Offsets are 64-bit.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _ordered(b_x):
    """float32 -> int32 in the same order: NaN above all, and no difference between the zeros."""
    b_bits = (b_x + 0.0).to(tl.int32, bitcast=True)
    b_order = tl.where(b_bits >= 0, b_bits, b_bits ^ 0x7FFFFFFF)
    return tl.where(b_x == b_x, b_order, 0x7FFFFFFF)


@triton.jit(do_not_specialize=["length"])
def text_guide(
    p_stream,
    stride_sample,
    stride_row,
    p_mask,
    p_guide,
    p_text_row,
    length,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: some channels of one sample. Number and row make one key: the largest is the lowest of equal rows.

    Reads the text's rows once, and the winners a second time.
    """
    i_program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    LAST_ROW: tl.constexpr = 2147483647
    NO_KEY: tl.constexpr = -9223372036854775808  # smaller than that of any element
    i_sample = i_program // BLOCKS
    i_channel = i_program % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = i_channel < WIDTH
    p_sample = p_stream + i_sample * stride_sample
    b_best = tl.full((BLOCK_T, BLOCK_D), NO_KEY, tl.int64)
    for start in range(0, length, BLOCK_T):
        i_row = start + tl.arange(0, BLOCK_T).to(tl.int64)
        m_text = tl.load(p_mask + i_sample * length + i_row, mask=i_row < length, other=0) != 0
        m_element = m_text[:, None] & m_channel[None, :]
        p_element = p_sample + (i_row * stride_row)[:, None] + i_channel[None, :]
        b_x = tl.load(p_element, mask=m_element, other=0.0).to(tl.float32)  # (BLOCK_T, BLOCK_D)
        b_key = _ordered(b_x).to(tl.int64) * 4294967296 + (LAST_ROW - i_row)[:, None]
        b_best = tl.maximum(b_best, tl.where(m_element, b_key, NO_KEY))
    b_winner = tl.max(b_best, 0)  # (BLOCK_D,)
    m_present = m_channel & (b_winner != NO_KEY)
    i_winner = LAST_ROW - (b_winner & 0xFFFFFFFF)
    b_guide = tl.load(p_sample + i_winner * stride_row + i_channel, mask=m_present, other=0.0)
    tl.store(p_guide + i_sample * WIDTH + i_channel, b_guide, mask=m_channel)
    tl.store(p_text_row + i_sample * WIDTH + i_channel, tl.where(m_present, i_winner, -1), mask=m_channel)


@triton.jit
def _locate(p_rows, p_sample, i_row, tokens, row_count, batch, HAS_GUIDE: tl.constexpr):
    """Of row i_row of the output: its stream row and whether it is one; its image's sample and whether it is that
    sample's guide."""
    i_image = i_row // (tokens + HAS_GUIDE)
    i_token = i_row % (tokens + HAS_GUIDE)
    is_token = i_token < tokens
    i_stream = tl.load(p_rows + i_image * tokens + i_token, mask=is_token, other=-1)
    i_sample = i_image
    if p_sample is not None:
        i_sample = tl.load(p_sample + i_image)
    is_guide = (i_token == tokens) & (i_sample >= 0) & (i_sample < batch)
    return i_stream, is_token & (i_stream >= 0) & (i_stream < row_count), i_image, i_sample, is_guide


@triton.jit(do_not_specialize=["length", "tokens", "row_count", "batch"])
def gather(
    p_stream,
    stride_sample,
    stride_row,
    p_rows,
    p_sample,
    p_guide,
    p_weight,
    p_out,
    p_inverse_rms,
    eps,
    length,
    tokens,
    row_count,
    batch,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: one row of the output, normalised. Reads it once and writes it once."""
    i_row = tl.program_id(0).to(tl.int64)
    HAS_GUIDE: tl.constexpr = p_guide is not None
    i_stream, is_token, _, i_sample, is_guide = _locate(p_rows, p_sample, i_row, tokens, row_count, batch, HAS_GUIDE)
    i_channel = tl.arange(0, BLOCK_D)
    m_channel = i_channel < WIDTH
    p_row = p_stream + i_stream // length * stride_sample + i_stream % length * stride_row
    b_x = tl.load(p_row + i_channel, mask=m_channel & is_token, other=0.0).to(tl.float32)  # (BLOCK_D,)
    if HAS_GUIDE:
        b_guide = tl.load(p_guide + i_sample * WIDTH + i_channel, mask=m_channel & is_guide, other=0.0)
        b_x = tl.where(is_guide, b_guide.to(tl.float32), b_x)
    if p_weight is not None:
        b_inverse_rms = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(b_x * b_x) / WIDTH + eps))
        b_inverse_rms = tl.where(is_token | is_guide, b_inverse_rms, 0.0)
        tl.store(p_inverse_rms + i_row, b_inverse_rms)
        b_x = b_x * b_inverse_rms * tl.load(p_weight + i_channel, mask=m_channel, other=0.0)
    tl.store(p_out + i_row * WIDTH + i_channel, b_x.to(p_out.dtype.element_ty), mask=m_channel)


@triton.jit(do_not_specialize=["length", "tokens", "row_count", "batch", "out_rows"])
def gather_backward(
    p_stream,
    stride_sample,
    stride_row,
    p_rows,
    p_sample,
    p_text_row,
    p_weight,
    p_grad_out,
    p_inverse_rms,
    p_grad_guide,
    p_grad_stream,
    p_grad_weight,
    length,
    tokens,
    row_count,
    batch,
    out_rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: ROWS rows of the output one after the other, and their sum of the weight's gradient.

    y = w z, z = r x:  dx = r (w dy - z mean(w dy z)),  dw = dy z. Moves rows, gradients in and gradients out once.
    """
    i_part = tl.program_id(0).to(tl.int64)
    HAS_GUIDE: tl.constexpr = p_text_row is not None
    i_channel = tl.arange(0, BLOCK_D)
    m_channel = i_channel < WIDTH
    b_grad_weight = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(ROWS):
        i_row = i_part * ROWS + i
        if i_row < out_rows:
            i_stream, is_token, i_image, i_sample, is_guide = _locate(
                p_rows, p_sample, i_row, tokens, row_count, batch, HAS_GUIDE
            )
            p_row = p_stream + i_stream // length * stride_sample + i_stream % length * stride_row + i_channel
            m_row = m_channel & is_token
            if HAS_GUIDE:
                m_guide = m_channel & is_guide
                i_text = tl.load(p_text_row + i_sample * WIDTH + i_channel, mask=m_guide, other=-1)
                m_guide = m_guide & (i_text >= 0)
                p_text = p_stream + i_sample * stride_sample + i_text * stride_row + i_channel
                p_row = tl.where(m_guide, p_text, p_row)
                m_row = m_row | m_guide
            b_grad = tl.load(p_grad_out + i_row * WIDTH + i_channel, mask=m_row, other=0.0).to(tl.float32)
            if p_weight is not None:
                b_x = tl.load(p_row, mask=m_row, other=0.0).to(tl.float32)
                b_weight = tl.load(p_weight + i_channel, mask=m_channel, other=0.0)
                b_inverse_rms = tl.load(p_inverse_rms + i_row)
                b_z = b_x * b_inverse_rms
                b_grad_weight += b_grad * b_z
                b_mean = tl.sum(b_grad * b_weight * b_z) / WIDTH
                b_grad = b_inverse_rms * (b_grad * b_weight - b_z * b_mean)
                b_grad = tl.where(m_row, b_grad, 0.0)
            if p_grad_stream is not None:
                p_target = p_grad_stream + i_stream * WIDTH + i_channel
                tl.store(p_target, b_grad.to(p_grad_stream.dtype.element_ty), mask=m_channel & is_token)
            if HAS_GUIDE:
                m_target = m_channel & (i_row % (tokens + 1) == tokens)
                tl.store(p_grad_guide + i_image * WIDTH + i_channel, b_grad, mask=m_target)
    if p_grad_weight is not None:
        tl.store(p_grad_weight + i_part * WIDTH + i_channel, b_grad_weight, mask=m_channel)


@triton.jit(do_not_specialize=["length", "images"])
def add_guide(
    p_grad_guide,
    p_sample,
    p_text_row,
    p_grad_stream,
    length,
    images,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: some channels of one sample's guide, its images' gradients summed in their order."""
    i_program = tl.program_id(0).to(tl.int64)
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_D - 1) // BLOCK_D
    i_sample = i_program // BLOCKS
    i_channel = i_program % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = i_channel < WIDTH
    b_sum = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(images):
        i_image = tl.zeros_like(i_sample) + i
        i_own = i_image
        if p_sample is not None:
            i_own = tl.load(p_sample + i_image).to(tl.int64)
        m_own = m_channel & (i_own == i_sample)
        b_sum += tl.load(p_grad_guide + i_image * WIDTH + i_channel, mask=m_own, other=0.0)
    i_text = tl.load(p_text_row + i_sample * WIDTH + i_channel, mask=m_channel, other=-1)
    m_text = i_text >= 0
    p_target = p_grad_stream + (i_sample * length + i_text) * WIDTH + i_channel
    b_sum += tl.load(p_target, mask=m_text, other=0.0).to(tl.float32)
    tl.store(p_target, b_sum.to(p_grad_stream.dtype.element_ty), mask=m_text)


@triton.jit(do_not_specialize=["length", "row_count"])
def scatter_add(
    p_stream,
    stride_sample,
    stride_row,
    p_rows,
    p_update,
    p_out,
    length,
    row_count,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: one row that is named. x - (0 - u) is x + u, but for a zero's sign: adding 0 leaves every bit."""
    i_row = tl.program_id(0).to(tl.int64)
    i_stream = tl.load(p_rows + i_row)
    i_channel = tl.arange(0, BLOCK_D)
    m_row = (i_channel < WIDTH) & (i_stream >= 0) & (i_stream < row_count)
    p_row = p_stream + i_stream // length * stride_sample + i_stream % length * stride_row
    b_x = tl.load(p_row + i_channel, mask=m_row, other=0.0).to(tl.float32)
    b_update = tl.load(p_update + i_row * WIDTH + i_channel, mask=m_row, other=0.0).to(tl.float32)
    b_sum = b_x - (0.0 - b_update)
    tl.store(p_out + i_stream * WIDTH + i_channel, b_sum.to(p_out.dtype.element_ty), mask=m_row)
