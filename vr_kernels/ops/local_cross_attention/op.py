"""``torch.ops.vr_kernels.local_cross_attention``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._registration import (
    asked_for,
    below_autograd,
    define_operator,
    refuse_double_backward,
    shortest_call,
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


@below_autograd
def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, backend = arguments
    if backend in FUSED:
        return fused.forward(FUSED[backend], *inputs)
    return blocked.forward(ENGINES[backend], *inputs)


@below_autograd
def backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    if backend in FUSED:
        return fused.backward(FUSED[backend], *inputs)
    return blocked_backward.backward(ENGINES[backend], *inputs)


def _fake(
    query: Tensor, features: Any, key_weight: Tensor, value_weight: Tensor, window_index: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    num_heads = others[6]  # behind six optional tensors
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


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, features, *tensors = inputs[:11]
    *ctx.options, ctx.backend = inputs[11:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, *tensors, output[1], *features)


def _autograd(ctx: Any, *grads: Any) -> Any:
    query, *saved = ctx.saved_tensors  # asked for once: under checkpointing it is computed for whoever asks
    tensors, features = saved[:10], saved[10:]  # the last of the tensors is the attention
    asks = ctx.needs_input_grad
    needs = [asks[0], asks[2], asks[3], *asks[5:11], any(asks[1])]  # in the order of NEEDS, without window_index
    d_query, d_key_weight, d_value_weight, *others = local_cross_attention_backward(
        *grads, query, features, *tensors, *ctx.options, needs, ctx.backend
    )
    d_others, d_features = others[:6], others[6:]
    no_options = [None] * (len(ctx.options) + 1)
    return tuple(asked_for((d_query, d_features, d_key_weight, d_value_weight, None, *d_others, *no_options), asks))


local_cross_attention_backward = define_operator(
    BACKWARD_SCHEMA, backward, _fake_backward, backward=refuse_double_backward("local_cross_attention")
)
local_cross_attention = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(local_cross_attention, forward, _setup_context, _autograd)
