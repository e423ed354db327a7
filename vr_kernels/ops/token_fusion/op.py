"""``torch.ops.vr_kernels.patch_linear``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vr_kernels.ops._registration import (
    asked_for,
    below_autograd,
    define_operator,
    refuse_double_backward,
    shortest_call,
)
from vr_kernels.ops.token_fusion import blocked, native, triton

_CALL = "Tensor[] features, Tensor weight, Tensor? bias, int kernel_size, str? activation"

# weight (O, C*k*k). With an activation the backward computes what it was applied to again: the public function applies
# it outside where gradients are recorded.
SCHEMA = f"patch_linear({_CALL}, str backend) -> Tensor"

# needs: weight, bias, features. Gradients of weight, bias, then of each level; empty: not needed.
BACKWARD_SCHEMA = f"patch_linear_backward(Tensor grad_out, {_CALL}, bool[] needs, str backend) -> Tensor[]"

ENGINES: dict[str, blocked.Engine] = {"cpu": native.NativePatches(), "triton": triton.TritonPatches()}


@below_autograd
def forward(*arguments: Any) -> Tensor:
    *inputs, backend = arguments
    return ENGINES[backend].forward(*inputs)


@below_autograd
def _backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    return blocked.backward(ENGINES[backend], *inputs)


def _fake(
    features: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: int,
    activation: str | None,
    backend: str,
) -> Tensor:
    batch, height, width, _ = features[0].shape
    return weight.new_empty(batch, height // kernel_size, width // kernel_size, weight.shape[0])


def _fake_backward(
    grad_out: Tensor,
    features: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: int,
    activation: str | None,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    needs_weight, needs_bias, needs_features = needs
    inputs = [(weight, needs_weight), (bias, needs_bias), *((level, needs_features) for level in features)]
    return [
        weight.new_empty(0) if tensor is None or not need else tensor.new_empty(tensor.shape) for tensor, need in inputs
    ]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    features, weight, bias, ctx.kernel_size, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(weight, bias, *features)


def _autograd(ctx: Any, grad_out: Tensor) -> Any:
    weight, bias, *features = ctx.saved_tensors
    asks = ctx.needs_input_grad
    needs = [asks[1], asks[2], any(asks[0])]
    options = (ctx.kernel_size, ctx.activation, needs, ctx.backend)
    d_weight, d_bias, *d_features = patch_linear_backward(grad_out, features, weight, bias, *options)
    return tuple(asked_for((d_features, d_weight, d_bias, None, None, None), asks))


patch_linear_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("patch_linear")
)
patch_linear = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(patch_linear, forward, _setup_context, _autograd)
