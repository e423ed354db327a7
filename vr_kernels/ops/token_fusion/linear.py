"""The stock linear form: the levels concatenated, their patches gathered by copy, then ``F.linear``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_linear(
    features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, kernel_size: int, activation: str | None
) -> Tensor:
    """The reference's function. The projection is ``F.linear``, so whatever stands in for it is honoured."""
    k = kernel_size
    joined = features[0] if len(features) == 1 else torch.cat(list(features), -1)
    windows = joined.unflatten(2, (-1, k)).unflatten(1, (-1, k))  # (B, n_h, k, n_w, k, C)
    rows = windows.permute(0, 1, 3, 5, 2, 4).flatten(3)  # (B, n_h, n_w, C*k*k), channel-major
    out = F.linear(rows, weight, None if bias is None else bias.to(weight.dtype))
    return F.gelu(out) if activation == "gelu" else out
