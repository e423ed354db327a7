"""Calls of the papers' sizes on meta tensors, forward and backward, with every gradient asked for."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vr_kernels.ops.deformable_attention import driver as deformable_driver
from vr_kernels.ops.deformable_attention import triton as deformable_triton
from vr_kernels.ops.local_attention import driver
from vr_kernels.ops.local_attention import op as attention_op
from vr_kernels.ops.local_cross_attention import blocked_backward
from vr_kernels.ops.local_cross_attention import op as cross_attention_op
from vr_kernels.ops.token_fusion import op as patch_linear_op

HEADS, HEAD_DIM, LEVELS, LEVEL_WIDTH, TILES, GRID = 24, 128, 3, 1024, 5, 24

# The window that fills each number of padded slots.
WINDOWS = {16: (3, 3), 32: (5, 5), 64: (8, 8)}


def cross_attention(
    dtype: torch.dtype,
    window: tuple[int, int],
    *,
    indexed: bool = False,
    norm: str | None = None,
    extras: bool = True,
    backend: str = "triton",
) -> None:
    """``local_cross_attention`` as its backend calls Triton; ``extras``: bias, saliency, the weights' gradient.

    The fused products are called for frozen features: those' gradient takes the blocks of "triton".
    """
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    windows = (TILES, GRID // window[0], GRID // window[1])
    grid = (TILES, windows[1] * window[0], windows[2] * window[1])
    slots, channels, width = window[0] * window[1], LEVELS * LEVEL_WIDTH, HEADS * HEAD_DIM
    features = [_hidden_state(grid, dtype) for _ in range(LEVELS)]
    query, index = empty(*windows, width), None
    if indexed:
        query, features = query.flatten(0, 2), [level.flatten(0, 2) for level in features]
        index = torch.empty(query.shape[0], slots, dtype=torch.int64, device="meta")
    weights = (empty(width, channels), empty(width, channels))
    norms = (empty(channels), empty(channels)) if norm else (None, None)
    others = (empty(HEADS, slots), empty(features[0].shape[:-1])) if extras else (None, None)
    tensors = (query, features, *weights, index, None, empty(width) if extras else None, *norms, *others)
    options = (HEADS, 1e-6, norm == "level", False, HEAD_DIM**-0.5)
    out, attention = cross_attention_op.forward(*tensors, *options, backend)
    needs = [name != "features" or backend == "triton" for name in blocked_backward.NEEDS]
    given = (out, attention if extras else None)
    cross_attention_op.backward(*given, *tensors, attention, *options, needs, backend)


def attention(dtype: torch.dtype, window: tuple[int, int], *, indexed: bool = False) -> None:
    """``local_attention`` on given keys and values, a head of them for each head of the query."""
    heads, width = 16, 64
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    windows = (TILES, GRID // window[0], GRID // window[1])
    grid = (TILES, windows[1] * window[0], windows[2] * window[1])
    query, key, value = empty(*windows, heads, width), empty(*grid, heads, width), empty(*grid, heads, width)
    index = None
    if indexed:
        query, key, value = (tensor.flatten(0, 2) for tensor in (query, key, value))
        index = torch.empty(query.shape[0], window[0] * window[1], dtype=torch.int64, device="meta")
    inputs = (query, [key], [value], index, None, None)
    kernel, scale = attention_op.KERNELS["triton"], width**-0.5
    out, weights, lse = driver.forward(kernel, *inputs, scale)
    driver.backward(kernel, out, weights, lse, *inputs, weights, scale, [True] * 5)


def deformable(dtype: torch.dtype) -> None:
    """``deformable_attention`` of 8 heads on three levels of hidden states, projected: 4 points, every gradient."""
    heads, width, queries, points = 8, 128, 64, 4
    value = [torch.empty(TILES, GRID, GRID, heads, width, dtype=dtype, device="meta") for _ in range(LEVELS)]
    shape = (TILES, queries, heads, LEVELS, points)
    places, weights = (torch.empty(*shape, *last, device="meta") for last in ((2,), ()))
    out = deformable_driver.forward(deformable_triton, value, places, weights)
    deformable_driver.backward(deformable_triton, out, value, places, weights, [True] * (2 + LEVELS))


def patch_linear(dtype: torch.dtype, kernel: int) -> None:
    """MBTF's first layer on eight levels at k = 1, STF's on one at k > 1."""
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    grid, width = (TILES, GRID, GRID), 4096
    levels = [_hidden_state(grid, dtype) for _ in range(8)] if kernel == 1 else [empty(*grid, LEVEL_WIDTH)]
    columns = len(levels) * LEVEL_WIDTH * kernel**2
    inputs = (levels, empty(width, columns), empty(width), kernel)
    out = patch_linear_op.forward(*inputs, "gelu", "triton")
    assert out.shape == (TILES, GRID // kernel, GRID // kernel, width)


def _hidden_state(grid: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """An encoder's output without its CLS row: not contiguous."""
    batch, height, width = grid
    rows = torch.empty(batch, 1 + height * width, LEVEL_WIDTH, dtype=dtype, device="meta")
    return rows[:, 1:].unflatten(1, (height, width))
