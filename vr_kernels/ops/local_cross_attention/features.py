"""The features as one normalised tensor: what the stock-PyTorch paths must make and the kernels never do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def joined_features(
    features: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    norm_groups: str,
) -> Tensor:
    """Levels (*rows, D_l) -> (*rows, C), layer-normalised over C or over each level when ``norm_weight`` is given."""
    joined = torch.cat(list(features), -1)
    if norm_weight is None:
        return joined
    sizes = [joined.shape[-1]] if norm_groups == "all" else [level.shape[-1] for level in features]
    statistics = torch.promote_types(joined.dtype, torch.float32)
    groups = [F.layer_norm(group, group.shape[-1:], eps=norm_eps) for group in joined.to(statistics).split(sizes, -1)]
    normalised = torch.cat(groups, -1) * norm_weight
    if norm_bias is not None:
        normalised = normalised + norm_bias
    return normalised.to(joined.dtype)
