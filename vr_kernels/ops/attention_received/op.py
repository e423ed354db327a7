"""``torch.ops.vr_kernels.attention_received``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops._registration import (
    asked_for,
    below_autograd,
    define_operator,
    refuse_double_backward,
    shortest_call,
)
from vr_kernels.ops.attention_received import blocked, native, triton

# Returns the sum over the rows of every head's weights, (B, h, N) or packed (h, T), float32 (float64 for float64).
SCHEMA = """attention_received(Tensor query, Tensor key, Tensor? cu_seqlens, Tensor? lse, bool causal, float scale,
 str backend) -> Tensor"""

# needs: query, key, lse. Gradients come in that order; empty: not needed.
BACKWARD_SCHEMA = """attention_received_backward(Tensor grad, Tensor query, Tensor key, Tensor? cu_seqlens, Tensor? lse,
 bool causal, float scale, bool[] needs, str backend) -> Tensor[]"""


class Passes(NamedTuple):
    """A backend's two functions; their arguments are those of the schemas."""

    forward: Callable[..., Tensor]
    backward: Callable[..., list[Tensor]]


BACKENDS = {
    "cpu": Passes(native.forward, native.backward),
    "triton": Passes(triton.forward, triton.backward),
    "blocked": Passes(blocked.forward, blocked.backward),
}


@below_autograd
def forward(*arguments: Any) -> Tensor:
    *inputs, backend = arguments
    return BACKENDS[backend].forward(*inputs)


@below_autograd
def _backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    return BACKENDS[backend].backward(*inputs)


def _fake(
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
    backend: str,
) -> Tensor:
    *batch, tokens, heads, _ = query.shape
    return query.new_empty(*batch, heads, tokens, dtype=torch.promote_types(query.dtype, torch.float32))


def _fake_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    causal: bool,
    scale: float,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    inputs = zip((query, key, query if lse is None else lse), needs, strict=True)
    return [tensor.new_empty(tensor.shape if need else 0) for tensor, need in inputs]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, cu_seqlens, lse, ctx.causal, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(query, key, cu_seqlens, lse)


def _autograd(ctx: Any, grad: Any) -> Any:
    wants_query, wants_key, _, wants_lse, *_ = ctx.needs_input_grad
    needs = [wants_query, wants_key, wants_lse]
    gradients = attention_received_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale, needs, ctx.backend)
    d_query, d_key, d_lse = asked_for(gradients, needs)
    return d_query, d_key, None, d_lse, None, None, None


attention_received_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("attention_received")
)
attention_received = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(attention_received, forward, _setup_context, _autograd)
