"""``torch.ops.vr_kernels.local_cross_attention``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

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
from vr_kernels.ops.local_cross_attention import blocked, blocked_backward, cuda, fused, native, triton

_TENSORS = """Tensor query, Tensor[] features, Tensor key_weight, Tensor value_weight, Tensor? window_index,
 Tensor? key_bias, Tensor? value_bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? attention_bias,
 Tensor? saliency"""
_OPTIONS = "int num_heads, float norm_eps, bool norm_per_level, bool saliency_on_feature, float scale"

# Returns the output (*leading, E) and the attention weights (*leading, h, K), float32: backward needs them in any case.
SCHEMA = f"local_cross_attention({_TENSORS}, {_OPTIONS}, str backend) -> (Tensor, Tensor)"

# needs and the gradients follow blocked_backward.NEEDS, then one gradient a feature level; empty where not needed.
BACKWARD_SCHEMA = f"""local_cross_attention_backward(Tensor? grad_out, Tensor? grad_attention, {_TENSORS},
 Tensor attention, {_OPTIONS}, bool[] needs, str backend) -> Tensor[]"""

ENGINES = {"cpu": native.ENGINE, "triton": triton.ENGINE, "cuda": cuda.ENGINE}
FUSED = {"triton_fused": triton.FUSED, "cuda_fused": cuda.FUSED}


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, backend = arguments
    if backend in FUSED:
        return fused.forward(FUSED[backend], *inputs)
    return blocked.forward(ENGINES[backend], *inputs)


def backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    if backend in FUSED:
        return fused.backward(FUSED[backend], *inputs)
    return blocked_backward.backward(ENGINES[backend], *inputs)


def _fake(query: Tensor, features: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    window_index, num_heads = arguments[2], arguments[9]
    leading = query.shape[:-1]
    if window_index is not None:
        slots = window_index.shape[1]
    else:
        slots = (features[0].shape[1] // query.shape[1]) * (features[0].shape[2] // query.shape[2])
    attention = query.new_empty(*leading, num_heads, slots, dtype=torch.float32)
    return query.new_empty(query.shape), attention


def _fake_backward(
    grad_out: Tensor | None, grad_attention: Tensor | None, query: Tensor, features: Any, *arguments: Any
) -> list[Tensor]:
    key_weight, value_weight, _, key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency = arguments[:9]
    needs = arguments[-2]
    biases = (key_bias, value_bias, norm_weight, norm_bias, attention_bias, saliency)
    inputs = [query, key_weight, value_weight, *biases, *features]
    wanted = [*needs[:-1], *[needs[-1]] * len(features)]
    return [
        query.new_empty(tensor.shape, dtype=tensor.dtype) if want and tensor is not None else query.new_empty(0)
        for tensor, want in zip(inputs, wanted, strict=True)
    ]


def _gradients(saved: Any, asks: Any, options: Any, backend: str, *grads: Any) -> list[Any]:
    """The saved tensors' gradients: query, the nine other tensors in the schema's order, then each feature level."""
    query, *tensors = saved[:11]  # the last one is the attention
    features = list(saved[11:])
    wants = [asks[0], asks[1], asks[2], *asks[4:10]]  # NEEDS has no window_index
    results = local_cross_attention_backward(
        *grads, query, features, *tensors, *options, [*wants, any(asks[10:])], backend
    )
    gradients = [*results[:3], None, *results[3:]]
    return [gradient if ask else None for gradient, ask in zip(gradients, asks, strict=True)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, features, *tensors = inputs[:11]
    *ctx.options, ctx.backend = inputs[11:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, *tensors, output[1], *features)


def _autograd(ctx: Any, *grads: Any) -> Any:
    asks_query, asks_features, *asks = ctx.needs_input_grad[:11]
    flat = [asks_query, *asks, *asks_features]
    d_query, *d_tensors = _gradients(ctx.saved_tensors, flat, ctx.options, ctx.backend, *grads)
    return d_query, d_tensors[9:], *d_tensors[:9], *[None] * (len(ctx.options) + 1)


class EagerLocalCrossAttention(torch.autograd.Function):
    """The same autograd rule without torch's dispatcher in the forward pass."""

    @staticmethod
    def forward(ctx: Any, options: Any, backend: str, query: Tensor, *tensors: Any) -> Any:
        inputs = (query, list(tensors[9:]), *tensors[:9], *options, backend)
        output = forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        asks = ctx.needs_input_grad[2:]
        return None, None, *_gradients(ctx.saved_tensors, asks, ctx.options, ctx.backend, *grads)


local_cross_attention_backward = define_operator(
    BACKWARD_SCHEMA, backward, _fake_backward, backward=refuse_double_backward("local_cross_attention")
)
local_cross_attention = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)


def run(query: Tensor, features: list[Tensor], tensors: Any, options: Any, backend: str) -> tuple[Tensor, Tensor]:
    """One checked call, by the shortest way that its surroundings allow; ``tensors`` and ``options`` as the schema."""
    everything = (query, *features, *tensors)
    refuse_other_modes("local_cross_attention", everything)
    if intercepted(everything):
        return local_cross_attention(query, features, *tensors, *options, backend)  # type: ignore[no-any-return]
    if not recording(everything):
        return forward(query, features, *tensors, *options, backend)
    return EagerLocalCrossAttention.apply(options, backend, query, *tensors, *features)  # type: ignore[no-any-return,no-untyped-call]
