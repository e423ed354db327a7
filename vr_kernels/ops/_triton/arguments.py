"""Tensors as the kernels take them: an address and strides together, one argument each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vr_kernels.ops._windows import Windows


class Rows(NamedTuple):
    """A (windows, heads, width) tensor with unit inner stride; strides count elements."""

    pointer: Tensor
    window: int
    head: int


class Level(NamedTuple):
    """A feature level, addressed (image, row, column, head, channel); the indexed form's rows count as images."""

    pointer: Tensor
    image: int
    row: int
    column: int
    head: int
    channel: int


class Projection(NamedTuple):
    """A (heads, width, channels) weight."""

    pointer: Tensor
    head: int
    row: int
    channel: int


def rows(tensor: Tensor | None) -> Rows | None:
    return None if tensor is None else Rows(tensor, tensor.stride(0), tensor.stride(1))


def bias_rows(bias: Tensor | None) -> Rows | None:
    """An attention bias (heads, K) or (windows, heads, K)."""
    if bias is None:
        return None
    return Rows(bias, 0, bias.stride(0)) if bias.dim() == 2 else rows(bias)


def projection(weight: Tensor) -> Projection:
    return Projection(weight, *weight.stride())


def levels(tensors: Sequence[Tensor], windows: Windows) -> tuple[Level, ...] | None:
    """Levels (*rows, h_kv, D); None where there are none."""
    if not tensors:
        return None
    if windows.window is not None:
        return tuple(Level(tensor, *tensor.stride()) for tensor in tensors)
    return tuple(Level(tensor, tensor.stride(0), 0, 0, *tensor.stride()[1:]) for tensor in tensors)


def widths(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.shape[-1] for tensor in tensors)
