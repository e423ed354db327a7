"""``DeformableKernel`` by Triton: the launches. Triton itself is imported by the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops._inverse_index import readers_of_rows

LARGEST_BLOCK = 128  # channels that one step takes
WARPS = 4


class SampledLevel(NamedTuple):
    """A level (B, H, W, h, d) with unit inner stride; strides count elements."""

    pointer: Tensor
    image: int
    row: int
    column: int
    head: int
    height: int
    width: int


def forward(value: Sequence[Tensor], locations: Tensor, weights: Tensor, out: Tensor) -> None:
    from vr_kernels.ops.deformable_attention.triton_kernels import deformable_forward

    if out.numel() == 0:
        return
    with torch.cuda.device_of(out):
        deformable_forward[_programs(weights)](out, locations, weights, **_arguments(value, weights))


def backward(
    grad_out: Tensor,
    value: Sequence[Tensor],
    locations: Tensor,
    weights: Tensor,
    grad_value: Sequence[Tensor | None],
    grad_locations: Tensor | None,
    grad_weights: Tensor | None,
) -> None:
    from vr_kernels.ops.deformable_attention.triton_kernels import deformable_backward, deformable_value_gradient

    if grad_out.numel() == 0:
        return
    batch, queries, heads, levels, points = weights.shape
    rows = parts = None
    if any(gradient is not None for gradient in grad_value):
        shape = (levels, batch, queries, heads, points, 4)
        rows = torch.empty(shape, dtype=torch.int64, device=weights.device)
        parts = torch.empty(shape, dtype=torch.float32, device=weights.device)
    with torch.cuda.device_of(grad_out):
        deformable_backward[_programs(weights)](
            grad_out,
            locations,
            weights,
            grad_locations,
            grad_weights,
            rows,
            parts,
            count=batch * queries * heads,
            **_arguments(value, weights),
        )
        for i, gradient in enumerate(grad_value):
            if gradient is None or gradient.numel() == 0:
                continue
            assert rows is not None
            assert parts is not None
            width = gradient.shape[-1]
            block = _block(width)
            count = gradient.numel() // width
            reader, first = readers_of_rows(rows[i].view(-1, 1), count)
            deformable_value_gradient[(count * -(-width // block),)](
                gradient,
                grad_out,
                parts[i],
                reader,
                first,
                WIDTH=width,
                ENTRIES=points * 4,
                BLOCK_C=block,
                num_warps=1,  # a row of 128 channels is then one vector a thread
            )


def _programs(weights: Tensor) -> tuple[int]:
    batch, queries, heads = weights.shape[:3]
    return (batch * queries * heads,)


def _block(width: int) -> int:
    return min(LARGEST_BLOCK, _power_of_two(width))


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _arguments(value: Sequence[Tensor], weights: Tensor) -> dict[str, Any]:
    _, queries, heads, _, points = weights.shape
    width = value[0].shape[-1]
    return {
        "levels": tuple(SampledLevel(level, *level.stride()[:4], *level.shape[1:3]) for level in value),
        "queries": queries,
        "heads": heads,
        "WIDTH": width,
        "POINTS": points,
        "BLOCK_P": _power_of_two(points),
        "BLOCK_C": _block(width),
        "num_warps": WARPS,
    }
