"""``torch.ops.vr_kernels.local_attention``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._cuda import CudaKernel
from vr_kernels.ops._registration import asked_for, define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops._triton.launch import TritonKernel
from vr_kernels.ops._window_kernel import WindowKernel
from vr_kernels.ops._window_native import NativeKernel
from vr_kernels.ops.local_attention import driver

# keys and values are levels (*rows, h_kv, width); values empty: the keys are the values.
# Returns the output, the attention weights and their log-sum-exp: backward needs the weights in any case.
SCHEMA = """local_attention(Tensor query, Tensor[] keys, Tensor[] values, Tensor? window_index, Tensor? attention_bias,
 Tensor? saliency, float scale, str backend) -> (Tensor, Tensor, Tensor)"""

# needs: query, attention_bias, saliency, keys, values. Gradients come in that order, one a level; empty: not needed.
BACKWARD_SCHEMA = """local_attention_backward(Tensor? grad_out, Tensor? grad_attention, Tensor? grad_lse, Tensor query,
 Tensor[] keys, Tensor[] values, Tensor? window_index, Tensor? attention_bias, Tensor? saliency, Tensor attention,
 float scale, bool[] needs, str backend) -> Tensor[]"""

KERNELS: dict[str, WindowKernel] = {"cpu": NativeKernel(), "triton": TritonKernel(), "cuda": CudaKernel()}


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, backend = arguments
    return driver.forward(KERNELS[backend], *inputs)


def _backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    return driver.backward(KERNELS[backend], *inputs)


def _fake(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    window_index: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    leading, heads = query.shape[:-2], query.shape[-2]
    width = sum(level.shape[-1] for level in values or keys)
    if window_index is not None:
        slots = window_index.shape[1]
    else:
        slots = (keys[0].shape[1] // query.shape[1]) * (keys[0].shape[2] // query.shape[2])
    return (
        query.new_empty(*leading, heads, width),
        query.new_empty(*leading, heads, slots, dtype=torch.float32),
        query.new_empty(*leading, heads, dtype=torch.float32),
    )


def _fake_backward(
    grad_out: Tensor | None,
    grad_attention: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    window_index: Tensor | None,
    attention_bias: Tensor | None,
    saliency: Tensor | None,
    attention: Tensor,
    scale: float,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    inputs: list[Tensor | None] = [query, attention_bias, saliency, *keys, *values]
    wanted = [*needs[:3], *[needs[3]] * len(keys), *[needs[4]] * len(values)]
    return [
        query.new_empty(tensor.shape, dtype=tensor.dtype) if want and tensor is not None else query.new_empty(0)
        for tensor, want in zip(inputs, wanted, strict=True)
    ]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, keys, values, window_index, attention_bias, saliency, ctx.scale, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.key_levels = len(keys)
    ctx.save_for_backward(query, window_index, attention_bias, saliency, output[1], *keys, *values)


def _autograd(ctx: Any, *grads: Any) -> Any:
    query, window_index, attention_bias, saliency, attention, *levels = ctx.saved_tensors
    keys, values = levels[: ctx.key_levels], levels[ctx.key_levels :]
    asks = ctx.needs_input_grad
    needs = [asks[0], asks[4], asks[5], any(asks[1]), any(asks[2])]
    small = (window_index, attention_bias, saliency, attention)
    d_query, d_bias, d_saliency, *d_levels = local_attention_backward(
        *grads, query, keys, values, *small, ctx.scale, needs, ctx.backend
    )
    d_keys, d_values = d_levels[: ctx.key_levels], d_levels[ctx.key_levels :]
    return tuple(asked_for((d_query, d_keys, d_values, None, d_bias, d_saliency, None, None), asks))


local_attention_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("local_attention")
)
local_attention = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(local_attention, forward, _setup_context, _autograd)
