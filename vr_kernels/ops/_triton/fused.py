"""The fused products of local cross-attention by Triton: the launches, and how the work is cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._layout import unit_inner
from vr_kernels.ops._triton import arguments
from vr_kernels.ops._triton.configurations import (
    OUTER,
    PROJECT,
    SCORES,
    STATISTICS,
    ProductConfiguration,
    choose_product,
    padded,
)
from vr_kernels.ops._window_kernel import WindowProblem

# Where windows and heads alone are too few, channels are split until there are two programs for each of an H100's
# 132 multiprocessors, but for no more memory than this: each split keeps a float32 sum of its own.
PROGRAMS = 264
SPLIT_BYTES = 8 << 20


class TritonFusedKernel:
    """``FusedKernel`` by Triton, on the current stream of the tensors' device."""

    def statistics(self, problem: WindowProblem) -> Tensor:
        from vr_kernels.ops._triton.product_tiles import feature_statistics

        windows, norm, widths = problem.windows, problem.norm, arguments.widths(problem.keys)
        assert norm is not None
        key = problem.keys[0]
        statistics = torch.empty(windows.row_count, len(widths), 2, dtype=torch.float32, device=key.device)
        _, height, width = windows.rows if windows.window is not None else (1, 1, 1)
        programs = -(-windows.row_count // STATISTICS.block_m)
        if programs > 0:
            with torch.cuda.device_of(key):
                feature_statistics[(programs,)](
                    statistics,
                    arguments.levels(problem.keys, windows),
                    norm.eps,
                    windows.row_count,
                    height,
                    width,
                    WIDTHS=widths,
                    PER_LEVEL=norm.per_level,
                    **STATISTICS.options(max(widths)),
                )
        return statistics

    def scores(self, problem: WindowProblem, x: Tensor, weight: Tensor, out: Tensor) -> None:
        from vr_kernels.ops._triton.products import window_scores

        count, heads, width = x.shape
        configuration = choose_product(SCORES, x.dtype, width, arguments.widths(problem.keys))
        tiles, groups = -(-count // configuration.block_n), -(-heads // configuration.block_h)
        blocks_each, splits = _splits(problem, configuration, tiles, out)
        head_parts = max(1, min(groups, PROGRAMS // max(1, tiles * splits)))
        heads_each = -(-groups // head_parts) * configuration.block_h
        parts = splits * -(-heads // heads_each)
        sums = _sums(out, splits)
        x = unit_inner(x)
        if count > 0:
            with torch.cuda.device_of(x):
                window_scores[(tiles * parts,)](
                    sums,
                    arguments.rows(x),
                    arguments.projection(weight),
                    **_features(problem, count),
                    parts=parts,
                    splits=splits,
                    blocks_each=blocks_each,
                    heads_each=heads_each,
                    **_sizes(problem, heads, width),
                    **configuration.options(),
                )
        _add_up(sums, out)

    def project(self, problem: WindowProblem, a: Tensor, weight: Tensor, out: Tensor) -> None:
        from vr_kernels.ops._triton.products import window_project

        count, heads, width = out.shape
        configuration = choose_product(PROJECT, out.dtype, width, arguments.widths(problem.keys))
        tiles, parts = -(-count // configuration.block_n), _parts(configuration, heads, width)
        blocks_each, splits = _splits(problem, configuration, tiles * parts, out)
        sums = _sums(out, splits)
        if count > 0:
            with torch.cuda.device_of(a):
                window_project[(tiles * parts * splits,)](
                    sums,
                    a,
                    arguments.projection(weight),
                    **_features(problem, count),
                    parts=parts * splits,
                    splits=splits,
                    blocks_each=blocks_each,
                    **_sizes(problem, heads, width),
                    **configuration.options(),
                )
        _add_up(sums, out)

    def outer(self, problem: WindowProblem, x: Tensor, a: Tensor, out: Tensor) -> None:
        from vr_kernels.ops._triton.products import window_outer

        count, heads, width = x.shape
        configuration = choose_product(OUTER, x.dtype, width, arguments.widths(problem.keys))
        x = unit_inner(x)
        with torch.cuda.device_of(x):
            window_outer[(_blocks(problem, configuration) * _parts(configuration, heads, width),)](
                out,
                arguments.rows(x),
                a,
                **_features(problem, count),
                CHANNELS=out.shape[-1],
                **_sizes(problem, heads, width),
                **configuration.options(),
            )


def _features(problem: WindowProblem, count: int) -> dict[str, Any]:
    """What is read of the features. Numbers that the indexed form has no use for are one, lest they make variants."""
    windows, norm = problem.windows, problem.norm
    _, n_h, n_w = windows.leading if windows.window is not None else (1, 1, 1)
    given = () if norm is None else (norm.statistics, norm.weight, norm.bias)
    return {
        "levels": arguments.levels(problem.keys, windows),
        "norm": tuple(tensor for tensor in given if tensor is not None),  # no bias without a weight
        "p_index": problem.window_index,
        "count": count,
        "n_h": n_h,
        "n_w": n_w,
        "row_count": windows.row_count,
    }


def _sizes(problem: WindowProblem, heads: int, width: int) -> dict[str, Any]:
    s_h, s_w = problem.windows.window or (1, 1)
    return {
        "WIDTHS": arguments.widths(problem.keys),
        "SLOTS": problem.windows.slots,
        "S_H": s_h,
        "S_W": s_w,
        "HEADS": heads,
        "HEAD_DIM": width,
        "BLOCK_K": padded(problem.windows.slots),
    }


def _blocks(problem: WindowProblem, configuration: ProductConfiguration) -> int:
    """Of channels, in all levels."""
    return sum(-(-width // configuration.block_c) for width in arguments.widths(problem.keys))


def _parts(configuration: ProductConfiguration, heads: int, width: int) -> int:
    """Tiles of a (heads, width) output."""
    return -(-heads // configuration.block_h) * -(-width // configuration.block_d)


def _splits(problem: WindowProblem, configuration: ProductConfiguration, programs: int, out: Tensor) -> tuple[int, int]:
    """(blocks of channels a split, splits) where there are ``programs`` without any."""
    blocks = _blocks(problem, configuration)
    affordable = max(1, SPLIT_BYTES // max(1, out.numel() * 4))
    each = -(-blocks // max(1, min(blocks, affordable, PROGRAMS // max(1, programs))))
    return each, -(-blocks // each)


def _sums(out: Tensor, splits: int) -> Tensor:
    """Where the splits of ``out`` are written, (splits, *out); ``out`` itself where there is one."""
    return out.unsqueeze(0) if splits == 1 else out.new_empty(splits, *out.shape, dtype=torch.float32)


def _add_up(sums: Tensor, out: Tensor) -> None:
    if sums.shape[0] > 1:
        out.copy_(sums.sum(0))
