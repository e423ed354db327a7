"""The definition of patch_linear, in plain PyTorch: a strided convolution of the concatenated levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_linear(
    features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, kernel_size: int, activation: str | None
) -> Tensor:
    """Levels (B, H, W, D_l), weight (O, C*k*k) -> (B, H/k, W/k, O) (LLaVA-STF, Eq. 1 at k = 1, Eq. 2)."""
    joined = torch.cat(list(features), -1).permute(0, 3, 1, 2)  # (B, C, H, W)
    kernel = weight.unflatten(1, (-1, kernel_size, kernel_size))  # (O, C, k, k)
    bias = None if bias is None else bias.to(weight.dtype)
    out = F.conv2d(joined, kernel, bias, stride=kernel_size).permute(0, 2, 3, 1)
    return F.gelu(out) if activation == "gelu" else out
