"""``torch.ops.vr_kernels.deformable_attention``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vr_kernels.ops._registration import asked_for, define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops.deformable_attention import driver, native, triton

SCHEMA = """deformable_attention(Tensor[] value, Tensor sampling_locations, Tensor attention_weights,
 str backend) -> Tensor"""

# needs: locations, weights, then one a level. Gradients come in that order; empty: not needed.
BACKWARD_SCHEMA = """deformable_attention_backward(Tensor grad_out, Tensor[] value, Tensor sampling_locations,
 Tensor attention_weights, bool[] needs, str backend) -> Tensor[]"""

KERNELS: dict[str, driver.DeformableKernel] = {"cpu": native, "triton": triton}


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


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    value, locations, weights, ctx.backend = inputs
    ctx.save_for_backward(locations, weights, *value)


def _autograd(ctx: Any, grad_out: Tensor) -> Any:
    locations, weights, *value = ctx.saved_tensors
    asks = ctx.needs_input_grad
    needs = [asks[1], asks[2], *asks[0]]
    d_locations, d_weights, *d_value = deformable_attention_backward(
        grad_out, value, locations, weights, needs, ctx.backend
    )
    return tuple(asked_for((d_value, d_locations, d_weights, None), asks))


deformable_attention_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("deformable_attention")
)
deformable_attention = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(deformable_attention, forward, _setup_context, _autograd)
