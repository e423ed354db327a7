"""The definition of the token gather, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._tokens import read_rows
from vr_kernels.ops.text_guide_token.reference import text_guide_token


def gather_tokens(
    hidden_states: Tensor,
    token_rows: Tensor,
    norm_weight: Tensor | None,
    text_mask: Tensor | None,
    image_sample: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """Each image's rows of the stream and its sample's text-guided token, normalised: (I, N, D) or (I, N+1, D).

    hidden_states (B, T, D), token_rows (I, N), norm_weight (D,), text_mask (B, T), image_sample (I,).
    """
    rows = read_rows(hidden_states.flatten(0, 1), token_rows)  # (I, N, D)
    if text_mask is not None:
        guide = text_guide_token(hidden_states, text_mask)[0]  # (B, D)
        if image_sample is not None:
            guide = read_rows(guide, image_sample)  # (I, D)
        rows = torch.cat([rows, guide[:, None]], 1)  # (I, N+1, D)
    return rows if norm_weight is None else rms_norm(rows, norm_weight, norm_eps)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, rounded once."""
    x = rows.to(torch.promote_types(rows.dtype, torch.float32))
    normalised = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (normalised * weight).to(rows.dtype)
