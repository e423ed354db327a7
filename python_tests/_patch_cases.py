"""Calls of ``patch_linear``, drawn from a seed, and what it computes a second time: one patch after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests._cases import Call, randn


def patch_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    auxiliary: torch.dtype | None = None,
    batch: int = 2,
    patches: tuple[int, int] = (2, 3),
    kernel: int = 2,
    widths: int | Sequence[int] = 13,
    out: int = 11,
    bias: bool = False,
    **options: Any,
) -> Call:
    """Arguments of ``patch_linear``. Widths in a sequence are levels; ``auxiliary`` is the bias's dtype."""
    g = torch.Generator().manual_seed(seed)
    grid = (batch, patches[0] * kernel, patches[1] * kernel)
    levels = [widths] if isinstance(widths, int) else list(widths)
    # Levels of different scale and mean, as an encoder's are.
    features = [(torch.randn(*grid, width, generator=g) * (1 + i) + i).to(dtype) for i, width in enumerate(levels)]
    columns = sum(levels) * kernel**2
    call: Call = {
        "features": features[0] if isinstance(widths, int) else features,
        "weight": randn(g, out, columns, dtype=dtype, scale=columns**-0.5),
        "kernel_size": kernel,
    }
    if bias:
        call["bias"] = randn(g, out, dtype=auxiliary or dtype)
    return call | options


def patch_linear(
    features: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Each output by itself: the patch's features, channel by channel, times the weight."""
    levels = [features] if isinstance(features, Tensor) else list(features)
    k, (batch, height, width) = kernel_size, levels[0].shape[:3]
    rows = []
    for b in range(batch):
        for y in range(0, height, k):
            for x in range(0, width, k):
                channels = [c for level in levels for c in level[b, y : y + k, x : x + k].unbind(-1)]  # C of (k, k)
                patch = torch.cat([c.flatten() for c in channels])
                rows.append(weight @ patch if bias is None else weight @ patch + bias)
    out = torch.stack(rows).view(batch, height // k, width // k, -1)
    return out if activation is None else 0.5 * out * (1 + torch.erf(out / math.sqrt(2)))


def convolution(
    features: Any, weight: Tensor, bias: Tensor | None = None, *, kernel_size: int = 1, activation: str | None = None
) -> Tensor:
    """The stock form: Conv2d on a concatenation."""
    joined = features if isinstance(features, Tensor) else torch.cat(features, -1)
    kernel = weight.unflatten(1, (-1, kernel_size, kernel_size))
    bias = None if bias is None else bias.to(weight.dtype)
    out = F.conv2d(joined.permute(0, 3, 1, 2), kernel, bias, stride=kernel_size).permute(0, 2, 3, 1)
    return out if activation is None else F.gelu(out)
