"""Tiles that the products of local cross-attention share: head rows, projections, features, what is pooled of them."""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.features import load_features, norm_statistics, normalised
from vr_kernels.ops._triton.window import level_offset, level_offsets, locate_rows


@triton.jit(do_not_specialize=["row_count", "height", "width"])
def feature_statistics(
    p_statistics,
    levels,
    eps,
    row_count,
    height,
    width,
    WIDTHS: tl.constexpr,
    PER_LEVEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_M feature rows, read twice, the second time from L1. The indexed form's grid is 1 by 1."""
    i_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_row = i_row < row_count
    place = (i_row // width // height, i_row // width % height, i_row % width)
    o_levels = level_offsets(levels, place, 0)
    statistics = norm_statistics(levels, o_levels, m_row, eps, WIDTHS, PER_LEVEL, BLOCK_M, BLOCK_C)
    for i in tl.static_range(len(WIDTHS)):
        b_mean, b_rstd = statistics[i]
        p_row = p_statistics + (i_row * len(WIDTHS) + i) * 2
        tl.store(p_row, b_mean, mask=m_row)
        tl.store(p_row + 1, b_rstd, mask=m_row)


@triton.jit
def tile_of_windows(count, parts, BLOCK_N: tl.constexpr):
    """This program's windows, which of them exist, and which of the ``parts`` of their work it does."""
    i_program = tl.program_id(0).to(tl.int64)
    i_window = i_program // parts * BLOCK_N + tl.arange(0, BLOCK_N)
    return i_window, i_window < count, i_program % parts


@triton.jit
def blocks_of_level(i_first, blocks, BEFORE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which blocks of a level, after BEFORE blocks of others, are among ``blocks`` from ``i_first`` on."""
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    return tl.maximum(i_first - BEFORE, 0), tl.minimum(i_first + blocks - BEFORE, BLOCKS)


@triton.jit
def slot_features(
    features,
    windows,
    i_slot,
    i_first,
    LEVEL: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One slot's features in each of the windows, (BLOCK_N, BLOCK_C) float32, zero where there are none."""
    levels, norm, p_index, n_h, n_w, row_count = features
    i_window, m_window = windows
    i_row, place, m_row = locate_rows(p_index, i_window, i_slot, m_window, 0, n_h, n_w, row_count, SLOTS, S_H, S_W)
    o_row = level_offset(levels[LEVEL], place, 0)
    b_feature, m_feature, i_channel = load_features(levels[LEVEL], o_row, m_row, i_first, WIDTH, BLOCK_C)
    b_feature = b_feature.to(tl.float32)
    if len(norm) > 0:
        p_row = norm[0] + (i_row * len(levels) + LEVEL) * 2
        b_mean = tl.load(p_row, mask=m_row, other=0.0)
        b_rstd = tl.load(p_row + 1, mask=m_row, other=0.0)
        b_feature = normalised(b_feature, m_feature, b_mean, b_rstd, norm, FIRST, i_channel, WIDTH)
    return b_feature


@triton.jit
def head_rows(x, windows, i_head, i_width, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """One head's row of each window, (BLOCK_N, BLOCK_D)."""
    i_window, m_window = windows
    m_row = (m_window & (i_head < HEADS))[:, None] & (i_width < HEAD_DIM)[None, :]
    p_row = x.pointer + (i_window * x.window + i_head * x.head)[:, None] + i_width[None, :]
    return tl.load(p_row, mask=m_row, other=0.0)


@triton.jit
def projection(weight, i_head, i_width, i_channel, m_channel, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Some of one head's rows of W, (BLOCK_D, BLOCK_C)."""
    m_weight = ((i_width < HEAD_DIM) & (i_head < HEADS))[:, None] & m_channel[None, :]
    p_weight = weight.pointer + i_head * weight.head + (i_width * weight.row)[:, None]
    return tl.load(p_weight + (i_channel * weight.channel)[None, :], mask=m_weight, other=0.0)


@triton.jit
def size_of_weights(p_a, windows, i_head, HEADS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """sum_k |a_k| of one head in each window, (BLOCK_N,), never zero.

    Divided by it, sum_k a_k f_k is no larger than a feature, and float16 holds it whatever the loss scale in a.
    """
    i_window, m_window = windows
    i_slot = tl.arange(0, BLOCK_K)
    m_weight = (m_window & (i_head < HEADS))[:, None] & (i_slot < SLOTS)[None, :]
    p_weight = p_a + ((i_window * HEADS + i_head) * SLOTS)[:, None] + i_slot[None, :]
    return tl.maximum(tl.sum(tl.abs(tl.load(p_weight, mask=m_weight, other=0.0)), 1), 1e-30)


@triton.jit
def pooled_features(
    p_a,
    sizes,
    features,
    windows,
    i_head,
    i_first,
    LEVEL: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """sum_k a_k f_k / size of BLOCK_H heads from ``i_head`` on, (BLOCK_N, BLOCK_C) float32 each."""
    i_window, m_window = windows
    pooled = ()
    for _ in tl.static_range(BLOCK_H):
        pooled += (tl.zeros([BLOCK_N, BLOCK_C], tl.float32),)
    for k in range(SLOTS):
        b_feature = slot_features(features, windows, k, i_first, LEVEL, FIRST, WIDTH, SLOTS, S_H, S_W, BLOCK_C)
        sums = ()
        for j in tl.static_range(BLOCK_H):
            p_weight = p_a + (i_window * HEADS + i_head + j) * SLOTS + k
            b_weight = tl.load(p_weight, mask=m_window & (i_head + j < HEADS), other=0.0) / sizes[j]
            sums += (pooled[j] + b_weight[:, None] * b_feature,)
        pooled = sums
    return pooled
