"""``torch.ops.vr_kernels.gather_tokens``: schema, fake and autograd; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._registration import asked_for, define_operator, refuse_double_backward, shortest_call
from vr_kernels.ops._token_kernel import TokenKernel
from vr_kernels.ops._token_native import NativeTokens
from vr_kernels.ops._triton.token_launch import TritonTokens
from vr_kernels.ops.gather_tokens import driver

# Returns the rows, their inverse root mean squares and the rows of the guide's channels: backward needs both.
SCHEMA = """gather_tokens(Tensor hidden_states, Tensor token_rows, Tensor? norm_weight, Tensor? text_mask,
 Tensor? image_sample, float norm_eps, str backend) -> (Tensor, Tensor, Tensor)"""

# needs: hidden_states, norm_weight. Gradients come in that order; empty: not needed.
BACKWARD_SCHEMA = """gather_tokens_backward(Tensor grad_out, Tensor hidden_states, Tensor token_rows,
 Tensor? norm_weight, Tensor? image_sample, Tensor inverse_rms, Tensor text_row, float norm_eps, bool[] needs,
 str backend) -> (Tensor, Tensor)"""

KERNELS: dict[str, TokenKernel] = {"cpu": NativeTokens(), "triton": TritonTokens()}


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, backend = arguments
    return driver.forward(KERNELS[backend], *inputs)


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, backend = arguments
    return driver.backward(KERNELS[backend], *inputs)


def _fake(
    hidden_states: Tensor,
    token_rows: Tensor,
    norm_weight: Tensor | None,
    text_mask: Tensor | None,
    image_sample: Tensor | None,
    norm_eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, width = hidden_states.shape
    images, tokens = token_rows.shape
    rows = (images, tokens + (text_mask is not None))
    return (
        hidden_states.new_empty(*rows, width),
        hidden_states.new_empty(0 if norm_weight is None else rows, dtype=torch.float32),
        hidden_states.new_empty(0 if text_mask is None else (batch, width), dtype=torch.int64),
    )


def _fake_backward(
    grad_out: Tensor,
    hidden_states: Tensor,
    token_rows: Tensor,
    norm_weight: Tensor | None,
    image_sample: Tensor | None,
    inverse_rms: Tensor,
    text_row: Tensor,
    norm_eps: float,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    needs_stream, needs_weight = needs
    nothing = hidden_states.new_empty(0)
    return (
        hidden_states.new_empty(hidden_states.shape) if needs_stream else nothing,
        nothing if not needs_weight or norm_weight is None else norm_weight.new_empty(norm_weight.shape),
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    hidden_states, token_rows, norm_weight, _, image_sample, ctx.norm_eps, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(hidden_states, token_rows, norm_weight, image_sample, *output[1:])


def _autograd(ctx: Any, grad_out: Tensor, *_: Any) -> Any:
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
    gradients = gather_tokens_backward(grad_out, *ctx.saved_tensors, ctx.norm_eps, needs, ctx.backend)
    d_stream, d_weight = asked_for(gradients, needs)
    return d_stream, None, d_weight, None, None, None, None


gather_tokens_backward = define_operator(
    BACKWARD_SCHEMA, _backward, _fake_backward, backward=refuse_double_backward("gather_tokens")
)
gather_tokens = define_operator(SCHEMA, forward, _fake, setup_context=_setup_context, backward=_autograd)
run = shortest_call(gather_tokens, forward, _setup_context, _autograd)
