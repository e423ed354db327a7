"""``torch.ops.vr_kernels.text_guide_token``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._registration import define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops._token_kernel import TokenKernel
from vr_kernels.ops._token_native import NativeTokens
from vr_kernels.ops._triton.token_launch import TritonTokens
from vr_kernels.ops.text_guide_token import driver

# Returns the guide and the row of each of its channels, which backward needs.
SCHEMA = "text_guide_token(Tensor hidden_states, Tensor text_mask, str backend) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = "text_guide_token_backward(Tensor grad_guide, Tensor text_row, SymInt length) -> Tensor"

KERNELS: dict[str, TokenKernel] = {"cpu": NativeTokens(), "triton": TritonTokens()}


def forward(hidden_states: Tensor, text_mask: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return driver.forward(KERNELS[backend], hidden_states, text_mask)


def _fake(hidden_states: Tensor, text_mask: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    shape = (hidden_states.shape[0], hidden_states.shape[2])
    return hidden_states.new_empty(shape), hidden_states.new_empty(shape, dtype=torch.int64)


def _fake_backward(grad_guide: Tensor, text_row: Tensor, length: int) -> Tensor:
    return grad_guide.new_empty(text_row.shape[0], length, text_row.shape[1])


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.length = inputs[0].shape[1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _autograd(ctx: Any, grad_guide: Tensor, _: Any) -> Any:
    return text_guide_token_backward(grad_guide, *ctx.saved_tensors, ctx.length), None, None


text_guide_token_backward = define_operator(
    BACKWARD_SCHEMA, driver.backward, _fake_backward, backward=refuse_double_backward("text_guide_token")
)
text_guide_token = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(text_guide_token, forward, _setup_context, _autograd)
