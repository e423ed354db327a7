"""``torch.ops.vr_kernels.deformable_attention``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._registration import (
    define_operator,
    intercepted,
    recording,
    refuse_double_backward,
    refuse_other_modes,
)
from vr_kernels.ops.deformable_attention import driver, native

SCHEMA = """deformable_attention(Tensor[] value, Tensor sampling_locations, Tensor attention_weights,
 str backend) -> Tensor"""

# needs: locations, weights, then one a level. Gradients come in that order; empty: not needed.
BACKWARD_SCHEMA = """deformable_attention_backward(Tensor grad_out, Tensor[] value, Tensor sampling_locations,
 Tensor attention_weights, bool[] needs, str backend) -> Tensor[]"""

KERNELS = {"cpu": native}


def forward(value: Sequence[Tensor], sampling_locations: Tensor, attention_weights: Tensor, backend: str) -> Tensor:
    return driver.forward(KERNELS[backend], value, sampling_locations, attention_weights)


def _backward(
    grad_out: Tensor,
    value: Sequence[Tensor],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    return driver.backward(KERNELS[backend], grad_out, value, sampling_locations, attention_weights, needs)


def _fake(value: Sequence[Tensor], sampling_locations: Tensor, attention_weights: Tensor, backend: str) -> Tensor:
    return value[0].new_empty(*attention_weights.shape[:3], value[0].shape[-1])


def _fake_backward(
    grad_out: Tensor,
    value: Sequence[Tensor],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    inputs = (sampling_locations, attention_weights, *value)
    return [x.new_empty(x.shape if need else 0) for x, need in zip(inputs, needs, strict=True)]


def _gradients(grad_out: Tensor, saved: Any, asks: Any, backend: str) -> list[Any]:
    """The saved tensors' gradients, in the order (locations, weights, *value)."""
    locations, weights, *value = saved
    gradients = deformable_attention_backward(grad_out, value, locations, weights, list(asks), backend)
    return [gradient if ask else None for gradient, ask in zip(gradients, asks, strict=True)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    value, locations, weights, ctx.backend = inputs
    ctx.save_for_backward(locations, weights, *value)


def _autograd(ctx: Any, grad_out: Tensor) -> Any:
    value, locations, weights, _ = ctx.needs_input_grad
    d_locations, d_weights, *d_value = _gradients(
        grad_out, ctx.saved_tensors, [locations, weights, *value], ctx.backend
    )
    return d_value, d_locations, d_weights, None


class EagerDeformableAttention(torch.autograd.Function):
    """The same autograd rule without torch's dispatcher in the forward pass."""

    @staticmethod
    def forward(ctx: Any, backend: str, locations: Tensor, weights: Tensor, *value: Tensor) -> Tensor:
        output = forward(value, locations, weights, backend)
        _setup_context(ctx, (value, locations, weights, backend), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        return None, *_gradients(grad_out, ctx.saved_tensors, ctx.needs_input_grad[1:], ctx.backend)


deformable_attention_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("deformable_attention")
)
deformable_attention = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)


def run(value: list[Tensor], sampling_locations: Tensor, attention_weights: Tensor, backend: str) -> Tensor:
    """One checked call, by the shortest way that what surrounds it allows."""
    tensors = (sampling_locations, attention_weights, *value)
    refuse_other_modes("deformable_attention", tensors)
    if intercepted(tensors):
        return deformable_attention(value, sampling_locations, attention_weights, backend)  # type: ignore[no-any-return]
    if not recording(tensors):
        return forward(value, sampling_locations, attention_weights, backend)
    return EagerDeformableAttention.apply(backend, *tensors)  # type: ignore[no-any-return,no-untyped-call]
