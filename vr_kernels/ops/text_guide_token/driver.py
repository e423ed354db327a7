"""The text-guided token around a backend's kernel: what is allocated, and the gradient, which is one scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._token_kernel import TokenKernel, TokenProblem


def forward(kernel: TokenKernel, hidden_states: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The guide (B, D) and the row of each of its channels (B, D), -1 without text."""
    batch, _, width = hidden_states.shape
    guide = hidden_states.new_empty(batch, width)
    text_row = hidden_states.new_empty(batch, width, dtype=torch.int64)
    kernel.text_guide(TokenProblem.prepare(hidden_states), text_mask.contiguous(), guide, text_row)
    return guide, text_row


def backward(grad_guide: Tensor, text_row: Tensor, length: int) -> Tensor:
    """The gradient of hidden_states (B, T, D)."""
    batch, width = text_row.shape
    gradient = grad_guide.new_zeros(batch, length, width)
    if length > 0:
        absent = text_row < 0
        index = text_row.masked_fill(absent, 0)
        gradient.scatter_(1, index[:, None], grad_guide.masked_fill(absent, 0)[:, None])
    return gradient
