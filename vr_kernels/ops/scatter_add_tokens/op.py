"""``torch.ops.vr_kernels.scatter_add_tokens``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vr_kernels.ops._registration import define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops._token_kernel import TokenKernel
from vr_kernels.ops._token_native import NativeTokens
from vr_kernels.ops._triton.token_launch import TritonTokens
from vr_kernels.ops.scatter_add_tokens import driver

SCHEMA = "scatter_add_tokens(Tensor hidden_states, Tensor token_rows, Tensor update, str backend) -> Tensor"

# The gradient of update alone: that of hidden_states is grad_out itself.
BACKWARD_SCHEMA = "scatter_add_tokens_backward(Tensor grad_out, Tensor token_rows, str backend) -> Tensor"

KERNELS: dict[str, TokenKernel] = {"cpu": NativeTokens(), "triton": TritonTokens()}


def forward(hidden_states: Tensor, token_rows: Tensor, update: Tensor, backend: str) -> Tensor:
    return driver.forward(KERNELS[backend], hidden_states, token_rows, update)


def _backward(grad_out: Tensor, token_rows: Tensor, backend: str) -> Tensor:
    return driver.backward(KERNELS[backend], grad_out, token_rows)


def _fake(hidden_states: Tensor, token_rows: Tensor, update: Tensor, backend: str) -> Tensor:
    return hidden_states.new_empty(hidden_states.shape)


def _fake_backward(grad_out: Tensor, token_rows: Tensor, backend: str) -> Tensor:
    return grad_out.new_empty(*token_rows.shape, grad_out.shape[-1])


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, token_rows, _, ctx.backend = inputs
    ctx.save_for_backward(token_rows)


def _autograd(ctx: Any, grad_out: Tensor) -> Any:
    d_update = None
    if ctx.needs_input_grad[2]:
        d_update = scatter_add_tokens_backward(grad_out, *ctx.saved_tensors, ctx.backend)
    return grad_out, None, d_update, None


scatter_add_tokens_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("scatter_add_tokens")
)
scatter_add_tokens = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(scatter_add_tokens, forward, _setup_context, _autograd)
