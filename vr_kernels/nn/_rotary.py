"""Rotary position embedding, in the rotate-half convention of Llama and Qwen2."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """x (I, N, ..., d) at its positions (I, N): the pair of channels i, i + d/2 turned by position * theta^(-2i/d).

    Angles, sines and products are float32 (float64 for float64); the result is rounded once, to the dtype of x.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, device=x.device, dtype=dtype) / half)  # (d/2,)
    angle = position.to(dtype)[..., None] * frequency  # (I, N, d/2)
    angle = angle.view(*position.shape, *[1] * (x.dim() - 3), half)  # (I, N, 1, ..., d/2)
    first, second = x.to(dtype).chunk(2, -1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)
