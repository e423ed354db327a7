"""The token gather around a backend's kernels: what is allocated, what is checked, whatever the backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops._token_kernel import TokenKernel, TokenProblem
from vr_kernels.ops._tokens import check_image_sample, check_token_rows
from vr_kernels.ops.text_guide_token import driver as text_guide


def forward(
    kernel: TokenKernel,
    hidden_states: Tensor,
    token_rows: Tensor,
    norm_weight: Tensor | None,
    text_mask: Tensor | None,
    image_sample: Tensor | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows (I, N or N+1, D), their inverse root mean squares (I, N or N+1), and the guide's rows (B, D).

    The second is empty without a norm, the third without a guide.
    """
    batch, length, width = hidden_states.shape
    check_token_rows("gather_tokens", token_rows, batch * length)
    check_image_sample("gather_tokens", image_sample, batch)
    guide, text_row = None, hidden_states.new_empty(0, dtype=torch.int64)
    if text_mask is not None:
        guide, text_row = text_guide.forward(kernel, hidden_states, text_mask)
    images, tokens = token_rows.shape
    out = hidden_states.new_empty(images, tokens + (guide is not None), width)
    normalised = norm_weight is not None
    inverse_rms = hidden_states.new_empty(out.shape[:2] if normalised else 0, dtype=torch.float32)
    problem = TokenProblem.prepare(hidden_states, token_rows, image_sample, norm_weight, norm_eps)
    kernel.gather(problem, guide, out, inverse_rms if normalised else None)
    return out, inverse_rms, text_row


def backward(
    kernel: TokenKernel,
    grad_out: Tensor,
    hidden_states: Tensor,
    token_rows: Tensor,
    norm_weight: Tensor | None,
    image_sample: Tensor | None,
    inverse_rms: Tensor,
    text_row: Tensor,
    norm_eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden_states and norm_weight; empty where ``needs`` says no."""
    needs_stream, needs_weight = needs
    width = hidden_states.shape[-1]
    nothing = hidden_states.new_empty(0)
    grad_stream = hidden_states.new_zeros(hidden_states.shape) if needs_stream else None
    parts = -(-grad_out.shape[0] * grad_out.shape[1] // kernel.rows_per_part)
    grad_weight = hidden_states.new_empty(parts, width, dtype=torch.float32) if needs_weight else None
    problem = TokenProblem.prepare(hidden_states, token_rows, image_sample, norm_weight, norm_eps)
    has_guide = grad_out.shape[1] > token_rows.shape[1]
    kernel.gather_backward(
        problem,
        grad_out.contiguous(),
        None if norm_weight is None else inverse_rms,
        text_row if has_guide else None,
        grad_stream,
        grad_weight,
    )
    return (
        nothing if grad_stream is None else grad_stream,
        nothing if grad_weight is None or norm_weight is None else grad_weight.sum(0).to(norm_weight.dtype),
    )
