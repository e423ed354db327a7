"""Deformable attention around a backend's kernels: what is allocated and in which dtype, whatever the backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vr_kernels.ops._layout import plain, unit_inner


class DeformableKernel(Protocol):
    """What a backend computes. Levels have unit inner stride; all other tensors are contiguous.

    Locations and weights are float32.
    """

    def forward(self, value: Sequence[Tensor], locations: Tensor, weights: Tensor, out: Tensor) -> None:
        """out (B, Q, h, d), in the values' dtype."""

    def backward(
        self,
        grad_out: Tensor,
        value: Sequence[Tensor],
        locations: Tensor,
        weights: Tensor,
        grad_value: Sequence[Tensor | None],
        grad_locations: Tensor | None,
        grad_weights: Tensor | None,
    ) -> None:
        """Adds to grad_value, float32 of the levels' shapes; writes the other two, float32."""


def forward(kernel: DeformableKernel, value: Sequence[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, h, d) in the values' dtype."""
    out = value[0].new_empty(*weights.shape[:3], value[0].shape[-1])
    kernel.forward([unit_inner(level) for level in value], plain(locations), plain(weights), out)
    return out


def backward(
    kernel: DeformableKernel,
    grad_out: Tensor,
    value: Sequence[Tensor],
    locations: Tensor,
    weights: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of locations, weights and each level; empty where ``needs``, in that order, says no."""
    needs_locations, needs_weights, *needs_value = needs
    d_value = [
        level.new_zeros(level.shape, dtype=torch.float32) if need else None
        for level, need in zip(value, needs_value, strict=True)
    ]
    d_locations = locations.new_empty(locations.shape, dtype=torch.float32) if needs_locations else None
    d_weights = weights.new_empty(weights.shape, dtype=torch.float32) if needs_weights else None
    kernel.backward(
        grad_out.contiguous(),
        [unit_inner(level) for level in value],
        plain(locations),
        plain(weights),
        d_value,
        d_locations,
        d_weights,
    )
    return [
        like.new_empty(0) if gradient is None else gradient.to(like.dtype)
        for gradient, like in zip((d_locations, d_weights, *d_value), (locations, weights, *value), strict=True)
    ]
