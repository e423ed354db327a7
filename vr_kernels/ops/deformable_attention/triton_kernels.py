"""Deformable attention in Triton. A (B, Q, h, ...) tensor is contiguous; its row i is that of (image, query, head).

Offsets are 64-bit, and everything loaded becomes float32 at once. A point's cell has four corners, numbered top left,
top right, bottom left, bottom right.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _locate(p_location, i_point, m_point, level):
    """Row and column of the points' top left corners, and how far the points stand to the right of and below them.

    A place that no feature reaches, or that is no number, gets a cell outside the level.
    """
    b_x = tl.load(p_location + 2 * i_point, mask=m_point, other=-1.0).to(tl.float32) * level.width - 0.5
    b_y = tl.load(p_location + 2 * i_point + 1, mask=m_point, other=-1.0).to(tl.float32) * level.height - 0.5
    m_near = (b_x >= -1.0) & (b_y >= -1.0) & (b_x < level.width) & (b_y < level.height)
    b_x, b_y = tl.where(m_near, b_x, -2.0), tl.where(m_near, b_y, -2.0)
    b_left, b_top = tl.floor(b_x), tl.floor(b_y)
    return b_top.to(tl.int64), b_left.to(tl.int64), b_x - b_left, b_y - b_top


@triton.jit
def _corner(i_row, i_column, m_point, level, K: tl.constexpr):
    """Corner K of the cells: its row, its column, whether it lies inside the level."""
    i_y, i_x = i_row + K // 2, i_column + K % 2
    return i_y, i_x, m_point & (i_y >= 0) & (i_y < level.height) & (i_x >= 0) & (i_x < level.width)


@triton.jit
def _share(b_right, b_below, K: tl.constexpr):
    """Corner K's part of a sample."""
    return (b_right if K % 2 else 1.0 - b_right) * (b_below if K // 2 else 1.0 - b_below)


@triton.jit
def _features(level, i_image, i_head, i_y, i_x, m_corner, i_channel, m_channel):
    """One corner's channels, (BLOCK_P, BLOCK_C), zero outside."""
    o_corner = i_image * level.image + i_y * level.row + i_x * level.column + i_head * level.head
    p_feature = level.pointer + o_corner[:, None] + i_channel[None, :]
    return tl.load(p_feature, mask=m_corner[:, None] & m_channel[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["queries", "heads"])
def deformable_forward(
    p_out,
    p_location,
    p_weight,
    levels,
    queries,
    heads,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one head of one query. Reads four features a point, and writes the output once."""
    LEVELS: tl.constexpr = len(levels)
    i_program = tl.program_id(0).to(tl.int64)
    i_head, i_image = i_program % heads, i_program // heads // queries
    i_point = tl.arange(0, BLOCK_P)
    m_point = i_point < POINTS
    for c in range(0, WIDTH, BLOCK_C):
        i_channel = c + tl.arange(0, BLOCK_C)
        m_channel = i_channel < WIDTH
        b_out = tl.zeros([BLOCK_C], tl.float32)
        for i in tl.static_range(LEVELS):
            level = levels[i]
            i_sample = (i_program * LEVELS + i) * POINTS + i_point  # (BLOCK_P,)
            i_row, i_column, b_right, b_below = _locate(p_location, i_sample, m_point, level)
            b_weight = tl.load(p_weight + i_sample, mask=m_point, other=0.0).to(tl.float32)
            for k in tl.static_range(4):
                i_y, i_x, m_corner = _corner(i_row, i_column, m_point, level, k)
                b_feature = _features(level, i_image, i_head, i_y, i_x, m_corner, i_channel, m_channel)
                b_part = tl.where(m_corner, b_weight * _share(b_right, b_below, k), 0.0)
                b_out += tl.sum(b_part[:, None] * b_feature, 0)
        tl.store(p_out + i_program * WIDTH + i_channel, b_out, mask=m_channel)


@triton.jit(do_not_specialize=["queries", "heads", "count"])
def deformable_backward(
    p_grad_out,
    p_location,
    p_weight,
    p_grad_location,
    p_grad_weight,
    p_reader_row,
    p_reader_part,
    levels,
    queries,
    heads,
    count,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one head of one query. Reads its gradient and four features a point once.

    For the values' gradient it writes which feature row each corner reads, -1 outside, and the part of it that goes
    into the output: both (levels, B, Q, h, POINTS, 4).
    """
    LEVELS: tl.constexpr = len(levels)
    i_program = tl.program_id(0).to(tl.int64)
    i_head, i_image = i_program % heads, i_program // heads // queries
    i_point = tl.arange(0, BLOCK_P)
    m_point = i_point < POINTS
    for i in tl.static_range(LEVELS):
        level = levels[i]
        i_sample = (i_program * LEVELS + i) * POINTS + i_point  # (BLOCK_P,)
        i_row, i_column, b_right, b_below = _locate(p_location, i_sample, m_point, level)
        b_weight = tl.load(p_weight + i_sample, mask=m_point, other=0.0).to(tl.float32)
        b_value = tl.zeros([BLOCK_P], tl.float32)  # grad_out . sample
        b_slope_x, b_slope_y = b_value, b_value
        for k in tl.static_range(4):
            i_y, i_x, m_corner = _corner(i_row, i_column, m_point, level, k)
            b_product = tl.zeros([BLOCK_P], tl.float32)  # grad_out . corner
            for c in range(0, WIDTH, BLOCK_C):
                i_channel = c + tl.arange(0, BLOCK_C)
                m_channel = i_channel < WIDTH
                b_feature = _features(level, i_image, i_head, i_y, i_x, m_corner, i_channel, m_channel)
                b_grad = tl.load(p_grad_out + i_program * WIDTH + i_channel, mask=m_channel, other=0.0).to(tl.float32)
                b_product += tl.sum(b_feature * b_grad[None, :], 1)
            b_share = _share(b_right, b_below, k)
            b_value += b_share * b_product
            b_slope_x += (b_product if k % 2 else -b_product) * (b_below if k // 2 else 1.0 - b_below)
            b_slope_y += (b_product if k // 2 else -b_product) * (b_right if k % 2 else 1.0 - b_right)
            if p_reader_row is not None:
                i_feature = ((i_image * level.height + i_y) * level.width + i_x) * heads + i_head
                i_entry = ((i * count + i_program) * POINTS + i_point) * 4 + k
                tl.store(p_reader_row + i_entry, tl.where(m_corner, i_feature, -1), mask=m_point)
                tl.store(p_reader_part + i_entry, b_weight * b_share, mask=m_point)
        if p_grad_weight is not None:
            tl.store(p_grad_weight + i_sample, b_value, mask=m_point)
        if p_grad_location is not None:
            tl.store(p_grad_location + 2 * i_sample, b_weight * level.width * b_slope_x, mask=m_point)
            tl.store(p_grad_location + 2 * i_sample + 1, b_weight * level.height * b_slope_y, mask=m_point)


@triton.jit
def deformable_value_gradient(
    p_gradient,
    p_grad_out,
    p_part,
    p_reader,
    p_first,
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: some channels of one feature row, over the corners that read it, in their order: no atomics.

    Row m's readers are reader[first[m]:first[m + 1]]; each is a corner's number, ENTRIES of them a head of a query.
    """
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    i_program = tl.program_id(0).to(tl.int64)
    i_row = i_program // BLOCKS
    i_channel = i_program % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = i_channel < WIDTH
    b_sum = tl.zeros([BLOCK_C], tl.float32)
    for i in range(tl.load(p_first + i_row), tl.load(p_first + i_row + 1)):
        i_entry = tl.load(p_reader + i)
        p_grad = p_grad_out + i_entry // ENTRIES * WIDTH + i_channel
        b_sum += tl.load(p_part + i_entry) * tl.load(p_grad, mask=m_channel, other=0.0).to(tl.float32)
    tl.store(p_gradient + i_row * WIDTH + i_channel, b_sum, mask=m_channel)
