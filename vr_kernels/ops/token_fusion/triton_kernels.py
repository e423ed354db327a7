"""patch_linear in Triton: a strided convolution over levels as one GEMM whose left operand is gathered tile by tile."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _gelu(b_x):
    return 0.5 * b_x * (1.0 + tl.erf(b_x * 0.7071067811865476))


@triton.jit(do_not_specialize=["patches", "down", "across"])
def patch_linear_forward(
    levels,
    p_weight,
    p_bias,
    p_out,
    patches,
    down,
    across,
    out_width,
    WIDTHS: tl.constexpr,
    KERNEL: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: BLOCK_M patches by BLOCK_N outputs. The levels are a tuple, walked one after another as if
    concatenated; columns are (channel, y, x). Programs that share a weight tile follow each other, so that it stays in
    the L2 cache: it is what most bytes are moved for.
    """
    i_program = tl.program_id(0).to(tl.int64)
    tiles_m = (patches + BLOCK_M - 1) // BLOCK_M
    i_patch = i_program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    i_out = i_program // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    m_patch, m_out = i_patch < patches, i_out < out_width
    i_image = i_patch // across // down
    i_y = i_patch // across % down * KERNEL
    i_x = i_patch % across * KERNEL

    AREA: tl.constexpr = KERNEL * KERNEL
    columns = 0
    for i in tl.static_range(len(WIDTHS)):
        columns += WIDTHS[i] * AREA
    b_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = 0
    for i in tl.static_range(len(WIDTHS)):
        level = levels[i]
        o_patch = i_image * level.image + i_y * level.row + i_x * level.column
        for c in range(0, WIDTHS[i] * AREA, BLOCK_K):
            i_column = c + tl.arange(0, BLOCK_K).to(tl.int64)
            m_column = i_column < WIDTHS[i] * AREA
            i_place = i_column % AREA
            o_column = i_column // AREA * level.channel + i_place // KERNEL * level.row
            o_column += i_place % KERNEL * level.column
            p_feature = level.pointer + o_patch[:, None] + o_column[None, :]
            # (BLOCK_M, BLOCK_K)
            b_feature = tl.load(p_feature, mask=m_patch[:, None] & m_column[None, :], other=0.0)
            p_column = p_weight + i_out[:, None] * columns + (first + i_column)[None, :]
            # (BLOCK_N, BLOCK_K)
            b_weight = tl.load(p_column, mask=m_out[:, None] & m_column[None, :], other=0.0)
            b_sum = tl.dot(b_feature, tl.trans(b_weight), b_sum, input_precision="ieee")
        first += WIDTHS[i] * AREA
    if p_bias is not None:
        b_sum += tl.load(p_bias + i_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
    if GELU:
        b_sum = _gelu(b_sum)
    tl.store(p_out + i_patch[:, None] * out_width + i_out[None, :], b_sum, mask=m_patch[:, None] & m_out[None, :])
