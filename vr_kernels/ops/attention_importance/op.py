"""``torch.ops.vr_kernels.attention_importance``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vr_kernels.ops._registration import asked_for, define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops.attention_importance.native import NativeRows
from vr_kernels.ops.attention_importance.triton import TritonRows

# Returns the weights of every head and row, (B, h, R, N) or packed (h, R, T), float32: torch reduces them.
SCHEMA = """attention_importance(Tensor query_rows, Tensor key, Tensor? key_mask, Tensor? cu_seqlens, bool softmax,
 float scale, str backend) -> Tensor"""

# needs: query_rows, key. weights are given where there is a softmax. Gradients come in that order; empty: not needed.
BACKWARD_SCHEMA = """attention_importance_backward(Tensor grad, Tensor query_rows, Tensor key, Tensor? key_mask,
 Tensor? cu_seqlens, Tensor? weights, float scale, bool[] needs, str backend) -> Tensor[]"""


class RowKernel(Protocol):
    """What a backend computes: the arguments are those of the schemas."""

    def forward(
        self,
        query_rows: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        softmax: bool,
        scale: float,
    ) -> Tensor:
        """w = softmax(s) or s, s = scale q.k; 0 where key_mask is False and outside the row's sequence."""

    def backward(
        self,
        grad: Tensor,
        query_rows: Tensor,
        key: Tensor,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        weights: Tensor | None,
        scale: float,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """ds = w (grad - sum w grad), or grad where there is no softmax; dq = scale ds k, dk = scale ds^T q."""


KERNELS: dict[str, RowKernel] = {"cpu": NativeRows(), "triton": TritonRows()}


def forward(*arguments: Any) -> Tensor:
    *inputs, backend = arguments
    return KERNELS[backend].forward(*inputs)


def _backward(*arguments: Any) -> list[Tensor]:
    *inputs, backend = arguments
    return KERNELS[backend].backward(*inputs)


def _fake(
    query_rows: Tensor,
    key: Tensor,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    softmax: bool,
    scale: float,
    backend: str,
) -> Tensor:
    sequences, rows, heads, _ = query_rows.shape
    batch = [] if cu_seqlens is not None else [sequences]
    return query_rows.new_empty(*batch, heads, rows, key.shape[-3], dtype=torch.float32)


def _fake_backward(
    grad: Tensor,
    query_rows: Tensor,
    key: Tensor,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    weights: Tensor | None,
    scale: float,
    needs: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    inputs = zip((query_rows, key), needs, strict=True)
    return [tensor.new_empty(tensor.shape if need else 0) for tensor, need in inputs]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query_rows, key, key_mask, cu_seqlens, softmax, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(query_rows, key, key_mask, cu_seqlens, output if softmax else None)


def _autograd(ctx: Any, grad: Any) -> Any:
    needs = list(ctx.needs_input_grad[:2])
    gradients = attention_importance_backward(grad, *ctx.saved_tensors, ctx.scale, needs, ctx.backend)
    return *asked_for(gradients, needs), None, None, None, None, None


attention_importance_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("attention_importance")
)
attention_importance = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(attention_importance, forward, _setup_context, _autograd)
