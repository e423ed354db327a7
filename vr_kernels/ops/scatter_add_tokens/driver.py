"""The token scatter around a backend's kernels: what is allocated, what is checked, whatever the backend."""

from __future__ import annotations

from torch import Tensor

from vr_kernels.ops._token_kernel import TokenKernel, TokenProblem
from vr_kernels.ops._tokens import check_token_rows


def forward(kernel: TokenKernel, hidden_states: Tensor, token_rows: Tensor, update: Tensor) -> Tensor:
    """The stream (B, T, D), update (I, N, D) added to its rows."""
    check_token_rows("scatter_add_tokens", token_rows, hidden_states.shape[0] * hidden_states.shape[1])
    out = hidden_states.new_empty(hidden_states.shape)
    kernel.scatter_add(TokenProblem.prepare(hidden_states, token_rows), update.contiguous(), out)
    return out


def backward(kernel: TokenKernel, grad_out: Tensor, token_rows: Tensor) -> Tensor:
    """The gradient of update: the rows of the stream's, zeros for padding."""
    gradient = grad_out.new_empty(*token_rows.shape, grad_out.shape[-1])
    kernel.gather(TokenProblem.prepare(grad_out, token_rows), None, gradient, None)
    return gradient
