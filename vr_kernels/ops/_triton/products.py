"""The products of local cross-attention that keep x W and sum_j a_j f_j in registers, for a tile of windows a program.

Those two have one row a window and head, so that no matrix instruction multiplies them with features: each slot's
features, one row a window, are loaded as a tile and multiplied element by element, for several heads at a time. The
projections take matrix instructions. Only their operands are rounded to the features' dtype.

Channels are cut into blocks, level by level, numbered through. ``norm`` is LayerNorm's (statistics, weight, bias), the
statistics a (rows, levels, 2) tensor; what there is none of is left out from its end.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.product_tiles import (
    blocks_of_level,
    head_rows,
    pooled_features,
    projection,
    size_of_weights,
    slot_features,
    tile_of_windows,
)


@triton.jit(do_not_specialize=["count", "n_h", "n_w", "row_count", "parts", "splits", "blocks_each", "heads_each"])
def window_scores(
    p_scores,
    x,
    weight,
    levels,
    norm,
    p_index,
    count,
    n_h,
    n_w,
    row_count,
    parts,
    splits,
    blocks_each,
    heads_each,
    WIDTHS: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: some channels of some heads of BLOCK_N windows; out (splits, N, h, K), to be summed by the caller.

    A block's features (74 KB for 64 windows of 3x3 and 64 channels) are read by all heads of the program, BLOCK_H at a
    time: from memory once, and then from L1. So heads are the inner loop, and what one block adds to the scores waits
    for the next in memory.
    """
    i_window, m_window, i_part = tile_of_windows(count, parts, BLOCK_N)
    windows, features = (i_window, m_window), (levels, norm, p_index, n_h, n_w, row_count)
    i_split = i_part % splits
    first_block, first_head = i_split * blocks_each, i_part // splits * heads_each
    i_slot = tl.arange(0, BLOCK_K)
    p_tile = p_scores + ((i_split * count + i_window) * HEADS * SLOTS)[:, None] + i_slot[None, :]
    m_tile = m_window[:, None] & (i_slot < SLOTS)[None, :]
    channels = 0
    blocks = 0
    for i in tl.static_range(len(WIDTHS)):
        start, stop = blocks_of_level(first_block, blocks_each, blocks, WIDTHS[i], BLOCK_C)
        for i_block in range(start, stop):
            i_channel = i_block * BLOCK_C + tl.arange(0, BLOCK_C)
            m_channel = i_channel < WIDTHS[i]
            for i_head in range(first_head, tl.minimum(first_head + heads_each, HEADS), BLOCK_H):
                products = ()
                scores = ()
                for j in tl.static_range(BLOCK_H):
                    b_product = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)  # of x W
                    for d in range(0, HEAD_DIM, BLOCK_D):
                        i_width = d + tl.arange(0, BLOCK_D).to(tl.int64)
                        b_x = head_rows(x, windows, i_head + j, i_width, HEADS, HEAD_DIM)
                        b_weight = projection(
                            weight, i_head + j, i_width, channels + i_channel, m_channel, HEADS, HEAD_DIM
                        )
                        b_product = tl.dot(b_x, b_weight, b_product, input_precision="ieee")
                    products += (b_product,)
                    scores += (tl.zeros([BLOCK_N, BLOCK_K], tl.float32),)
                for k in range(SLOTS):
                    b_feature = slot_features(
                        features, windows, k, i_block * BLOCK_C, i, channels, WIDTHS[i], SLOTS, S_H, S_W, BLOCK_C
                    )
                    sums = ()
                    for j in tl.static_range(BLOCK_H):
                        b_score = tl.sum(products[j] * b_feature, 1)[:, None]
                        sums += (tl.where(i_slot[None, :] == k, b_score, scores[j]),)
                    scores = sums
                for j in tl.static_range(BLOCK_H):
                    p_score = p_tile + (i_head + j) * SLOTS
                    m_score = m_tile & (i_head + j < HEADS)
                    b_before = tl.load(p_score, mask=m_score & (blocks + i_block > first_block), other=0.0)
                    tl.store(p_score, b_before + scores[j], mask=m_score)
            tl.debug_barrier()  # what one thread wrote another may read back
        channels += WIDTHS[i]
        blocks += (WIDTHS[i] + BLOCK_C - 1) // BLOCK_C


@triton.jit(do_not_specialize=["count", "n_h", "n_w", "row_count", "parts", "splits", "blocks_each"])
def window_project(
    p_out,
    p_a,
    weight,
    levels,
    norm,
    p_index,
    count,
    n_h,
    n_w,
    row_count,
    parts,
    splits,
    blocks_each,
    WIDTHS: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_H heads of BLOCK_N windows, over some channels; out (splits, N, h, d), to be summed.

    The output stays in registers while channels pass. The programs that share windows, and so their features, run side
    by side.
    """
    WIDTH_TILES: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    i_window, m_window, i_part = tile_of_windows(count, parts, BLOCK_N)
    windows, features = (i_window, m_window), (levels, norm, p_index, n_h, n_w, row_count)
    i_split, i_part = i_part % splits, i_part // splits
    i_width = i_part % WIDTH_TILES * BLOCK_D + tl.arange(0, BLOCK_D)
    i_head = i_part // WIDTH_TILES * BLOCK_H
    dtype = weight.pointer.dtype.element_ty
    sizes = ()
    outputs = ()
    for j in tl.static_range(BLOCK_H):
        sizes += (size_of_weights(p_a, windows, i_head + j, HEADS, SLOTS, BLOCK_K),)
        outputs += (tl.zeros([BLOCK_N, BLOCK_D], tl.float32),)
    channels = 0
    blocks = 0
    for i in tl.static_range(len(WIDTHS)):
        start, stop = blocks_of_level(i_split * blocks_each, blocks_each, blocks, WIDTHS[i], BLOCK_C)
        for i_block in range(start, stop):
            i_channel = i_block * BLOCK_C + tl.arange(0, BLOCK_C)
            m_channel = i_channel < WIDTHS[i]
            pooled = pooled_features(
                p_a,
                sizes,
                features,
                windows,
                i_head,
                i_block * BLOCK_C,
                i,
                channels,
                WIDTHS[i],
                SLOTS,
                S_H,
                S_W,
                HEADS,
                BLOCK_N,
                BLOCK_H,
                BLOCK_C,
            )
            sums = ()
            for j in tl.static_range(BLOCK_H):
                b_weight = projection(weight, i_head + j, i_width, channels + i_channel, m_channel, HEADS, HEAD_DIM)
                b_sum = tl.dot(pooled[j].to(dtype), tl.trans(b_weight), outputs[j], input_precision="ieee")
                sums += (b_sum,)
            outputs = sums
        channels += WIDTHS[i]
        blocks += (WIDTHS[i] + BLOCK_C - 1) // BLOCK_C
    for j in tl.static_range(BLOCK_H):
        p_row = p_out + ((i_split * count + i_window) * HEADS + i_head + j) * HEAD_DIM
        m_row = (m_window & (i_head + j < HEADS))[:, None] & (i_width < HEAD_DIM)[None, :]
        tl.store(p_row[:, None] + i_width[None, :], outputs[j] * sizes[j][:, None], mask=m_row)


@triton.jit(do_not_specialize=["count", "n_h", "n_w", "row_count"])
def window_outer(
    p_out,
    x,
    p_a,
    levels,
    norm,
    p_index,
    count,
    n_h,
    n_w,
    row_count,
    CHANNELS: tl.constexpr,
    WIDTHS: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: a block of channels of BLOCK_H heads of the (h, d, C) output, over all windows in their order.

    The programs that share channels, and so features, run side by side.
    """
    WIDTH_TILES: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    PARTS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H * WIDTH_TILES
    i_program = tl.program_id(0).to(tl.int64)
    i_part = i_program % PARTS
    i_width = i_part % WIDTH_TILES * BLOCK_D + tl.arange(0, BLOCK_D)
    i_head = i_part // WIDTH_TILES * BLOCK_H
    features = (levels, norm, p_index, n_h, n_w, row_count)
    dtype = x.pointer.dtype.element_ty
    channels = 0
    blocks = 0
    for i in tl.static_range(len(WIDTHS)):
        start, stop = blocks_of_level(i_program // PARTS, 1, blocks, WIDTHS[i], BLOCK_C)
        for i_block in range(start, stop):
            gradients = ()
            for _ in tl.static_range(BLOCK_H):
                gradients += (tl.zeros([BLOCK_D, BLOCK_C], tl.float32),)
            for n in range(0, count, BLOCK_N):
                i_window = n + tl.arange(0, BLOCK_N).to(tl.int64)
                windows = (i_window, i_window < count)
                sizes = ()
                for j in tl.static_range(BLOCK_H):
                    b_size = size_of_weights(p_a, windows, i_head + j, HEADS, SLOTS, BLOCK_K)
                    sizes += (tl.max(b_size, 0),)
                pooled = pooled_features(
                    p_a,
                    sizes,
                    features,
                    windows,
                    i_head,
                    i_block * BLOCK_C,
                    i,
                    channels,
                    WIDTHS[i],
                    SLOTS,
                    S_H,
                    S_W,
                    HEADS,
                    BLOCK_N,
                    BLOCK_H,
                    BLOCK_C,
                )
                sums = ()
                for j in tl.static_range(BLOCK_H):
                    b_x = head_rows(x, windows, i_head + j, i_width, HEADS, HEAD_DIM)
                    b_sum = tl.dot(tl.trans(b_x), pooled[j].to(dtype), input_precision="ieee")
                    sums += (gradients[j] + sizes[j] * b_sum,)
                gradients = sums
            i_channel = i_block * BLOCK_C + tl.arange(0, BLOCK_C)
            m_channel = i_channel < WIDTHS[i]
            for j in tl.static_range(BLOCK_H):
                p_row = p_out + ((i_head + j) * HEAD_DIM + i_width) * CHANNELS + channels
                m_row = ((i_width < HEAD_DIM) & (i_head + j < HEADS))[:, None] & m_channel[None, :]
                tl.store(p_row[:, None] + i_channel[None, :], gradients[j], mask=m_row)
        channels += WIDTHS[i]
        blocks += (WIDTHS[i] + BLOCK_C - 1) // BLOCK_C
