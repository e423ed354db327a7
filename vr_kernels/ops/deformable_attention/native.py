"""``DeformableKernel`` by csrc/cpu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._native import DTYPE_CODES, address, module


def forward(value: Sequence[Tensor], locations: Tensor, weights: Tensor, out: Tensor) -> None:
    module().deformable_attention_forward(_struct(value, [None] * len(value), locations, weights), out.data_ptr())


def backward(
    grad_out: Tensor,
    value: Sequence[Tensor],
    locations: Tensor,
    weights: Tensor,
    grad_value: Sequence[Tensor | None],
    grad_locations: Tensor | None,
    grad_weights: Tensor | None,
) -> None:
    module().deformable_attention_backward(
        _struct(value, grad_value, locations, weights),
        grad_out.data_ptr(),
        address(grad_locations),
        address(grad_weights),
    )


def _struct(value: Sequence[Tensor], grad_value: Sequence[Tensor | None], locations: Tensor, weights: Tensor) -> Any:
    batch, queries, heads, _, points = weights.shape
    return module().DeformableAttention(
        batch=batch,
        queries=queries,
        heads=heads,
        channels=value[0].shape[-1],
        points=points,
        levels=[
            (level.data_ptr(), address(gradient), *level.shape[1:3], *level.stride()[:4])
            for level, gradient in zip(value, grad_value, strict=True)
        ],
        dtype=DTYPE_CODES[value[0].dtype],
        locations=locations.data_ptr(),
        weights=weights.data_ptr(),
        threads=torch.get_num_threads(),
    )
