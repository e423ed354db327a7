"""A window's feature rows: read, layer-normalised on the way if asked, and multiplied with head rows from either side.

The levels are a tuple, walked one after another as if concatenated. Operands of ``tl.dot`` have the head rows' dtype,
which may be wider than the features'; everything else is float32. A ``source`` is what is read: (levels, each level's
row offsets, norm), and ``norm`` is LayerNorm's (statistics, weight, bias), one (mean, inverse deviation) a level; what
there is none of is left out from its end, since triton 3.6 cannot return a tuple with None in it.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from vr_kernels.ops._triton.window import level_offsets, row_pointers


@triton.jit
def load_features(level, o_row, m_slot, i_first, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """A level's channels from ``i_first`` on, (BLOCK_K, BLOCK_C), zero where nothing is; the mask and the channels."""
    i_channel = i_first + tl.arange(0, BLOCK_C).to(tl.int64)
    m_feature = m_slot[:, None] & (i_channel < WIDTH)[None, :]
    p_feature = level.pointer + o_row[:, None] + (i_channel * level.channel)[None, :]
    return tl.load(p_feature, mask=m_feature, other=0.0), m_feature, i_channel


@triton.jit
def _load_normalised(source, i_level, m_slot, i_first, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """``load_features`` through LayerNorm, float32, where there is one; FIRST is the level's first channel of all."""
    levels, o_levels, norm = source
    b_feature, m_feature, i_channel = load_features(levels[i_level], o_levels[i_level], m_slot, i_first, WIDTH, BLOCK_C)
    if len(norm) > 0:
        b_mean, b_rstd = norm[0][i_level]
        b_feature = normalised(b_feature, m_feature, b_mean, b_rstd, norm, FIRST, i_channel, WIDTH)
    return b_feature, i_channel


@triton.jit
def normalised(b_feature, m_feature, b_mean, b_rstd, norm, FIRST: tl.constexpr, i_channel, WIDTH: tl.constexpr):
    """Feature rows through LayerNorm, float32; its weight and bias, if any, follow what else ``norm`` begins with."""
    b_feature = (b_feature.to(tl.float32) - b_mean[:, None]) * b_rstd[:, None]
    m_channel = i_channel < WIDTH
    if len(norm) > 1:
        b_feature *= tl.load(norm[1] + FIRST + i_channel, mask=m_channel, other=0.0)[None, :]
    if len(norm) > 2:
        b_feature += tl.load(norm[2] + FIRST + i_channel, mask=m_channel, other=0.0)[None, :]
    return tl.where(m_feature, b_feature, 0.0)


@triton.jit
def _sum_deviations(
    levels,
    o_levels,
    m_slot,
    b_mean,
    WIDTHS: tl.constexpr,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    SQUARE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum over the channels of levels FROM to TO of f - mean or of its square, (BLOCK_K,)."""
    b_sum = tl.zeros([BLOCK_K], tl.float32)
    for i in tl.static_range(FROM, TO):
        for c in range(0, WIDTHS[i], BLOCK_C):
            b_feature, m_feature, _ = load_features(levels[i], o_levels[i], m_slot, c, WIDTHS[i], BLOCK_C)
            b_deviation = tl.where(m_feature, b_feature.to(tl.float32) - b_mean[:, None], 0.0)
            if SQUARE:
                b_deviation *= b_deviation
            b_sum += tl.sum(b_deviation, 1)
    return b_sum


@triton.jit
def _group_statistics(
    levels,
    o_levels,
    m_slot,
    eps,
    WIDTHS: tl.constexpr,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(mean, inverse deviation) over levels FROM to TO, in two passes: a single one cancels where the mean is large."""
    width = 0
    for i in tl.static_range(FROM, TO):
        width += WIDTHS[i]
    b_zero = tl.zeros([BLOCK_K], tl.float32)
    b_mean = _sum_deviations(levels, o_levels, m_slot, b_zero, WIDTHS, FROM, TO, False, BLOCK_K, BLOCK_C) / width
    b_variance = _sum_deviations(levels, o_levels, m_slot, b_mean, WIDTHS, FROM, TO, True, BLOCK_K, BLOCK_C) / width
    return b_mean, 1.0 / tl.sqrt_rn(b_variance + eps)


@triton.jit
def norm_statistics(
    levels,
    o_levels,
    m_slot,
    eps,
    WIDTHS: tl.constexpr,
    PER_LEVEL: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One (mean, inverse deviation) a level, over that level or over all of them."""
    LEVELS: tl.constexpr = len(WIDTHS)
    statistics = ()
    if PER_LEVEL:
        for i in tl.static_range(LEVELS):
            one = _group_statistics(levels, o_levels, m_slot, eps, WIDTHS, i, i + 1, BLOCK_K, BLOCK_C)
            statistics += (one,)
    else:
        one = _group_statistics(levels, o_levels, m_slot, eps, WIDTHS, 0, LEVELS, BLOCK_K, BLOCK_C)
        for _ in tl.static_range(LEVELS):
            statistics += (one,)
    return statistics


@triton.jit
def sources(
    keys,
    values,
    place,
    i_kv,
    m_slot,
    p_norm_weight,
    p_norm_bias,
    norm_eps,
    WIDTHS: tl.constexpr,
    NORM_GROUPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The keys' and the values' source of a window. The norm is the values' too where they are the keys."""
    o_keys = level_offsets(keys, place, i_kv)
    norm = ()
    if NORM_GROUPS is not None:
        per_level: tl.constexpr = NORM_GROUPS == "level"
        statistics = norm_statistics(keys, o_keys, m_slot, norm_eps, WIDTHS, per_level, BLOCK_K, BLOCK_C)
        norm = (statistics,)
        if p_norm_weight is not None:
            norm += (p_norm_weight,)
        if p_norm_bias is not None:
            norm += (p_norm_bias,)
    key_source = (keys, o_keys, norm)
    value_source = key_source
    if values is not None:
        value_source = (values, level_offsets(values, place, i_kv), ())
    return key_source, value_source


@triton.jit
def dot_features(
    rows,
    i_window,
    i_head,
    m_head,
    source,
    m_slot,
    WIDTHS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Head row times feature row, (BLOCK_H, BLOCK_K) float32."""
    b_dot = tl.zeros([BLOCK_H, BLOCK_K], tl.float32)
    first = 0
    for i in tl.static_range(len(WIDTHS)):
        for c in range(0, WIDTHS[i], BLOCK_C):
            # (BLOCK_K, BLOCK_C)
            b_feature, i_channel = _load_normalised(source, i, m_slot, c, first, WIDTHS[i], BLOCK_C)
            m_row = m_head[:, None] & (i_channel < WIDTHS[i])[None, :]
            p_row = row_pointers(rows, i_window, i_head, first + i_channel)
            b_row = tl.load(p_row, mask=m_row, other=0.0)  # (BLOCK_H, BLOCK_C)
            b_dot = tl.dot(b_row, tl.trans(b_feature.to(b_row.dtype)), b_dot, input_precision="ieee")
        first += WIDTHS[i]
    return b_dot


@triton.jit
def mix_features(
    weights, outputs, i_window, i_head, m_head, source, m_slot, WIDTHS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """outputs[j] = weights[j] @ features, reading the features once; weights are (BLOCK_H, BLOCK_K) operands."""
    first = 0
    for i in tl.static_range(len(WIDTHS)):
        for c in range(0, WIDTHS[i], BLOCK_C):
            # (BLOCK_K, BLOCK_C)
            b_feature, i_channel = _load_normalised(source, i, m_slot, c, first, WIDTHS[i], BLOCK_C)
            m_row = m_head[:, None] & (i_channel < WIDTHS[i])[None, :]
            for j in tl.static_range(len(weights)):
                b_mix = tl.dot(weights[j], b_feature.to(weights[j].dtype), input_precision="ieee")  # (BLOCK_H, BLOCK_C)
                tl.store(row_pointers(outputs[j], i_window, i_head, first + i_channel), b_mix, mask=m_row)
        first += WIDTHS[i]
