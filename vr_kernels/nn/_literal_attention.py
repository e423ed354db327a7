"""Windowed cross-attention without projections: Vision Remember v2, Eq. 2, as it is printed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vr_kernels.ops import local_attention
from vr_kernels.ops.local_cross_attention.features import joined_features


class LiteralLocalAttention(nn.Module):
    """``Attention(Q = T, K = F, V = F)`` over each token's window: one head, the levels' concatenation as it is.

    The same call as ``LocalCrossAttention``. Saliency multiplies the values, which are the features.

    Args:
        feature_dims: width of each level. feature_norm: LayerNorm of the features (eps 1e-6), "none", "all", "level".
    """

    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(
        self,
        feature_dims: Sequence[int],
        *,
        feature_norm: str = "none",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.feature_dims, self.feature_norm, self.backend = tuple(feature_dims), feature_norm, backend
        for name in ("norm_weight", "norm_bias"):
            parameter = nn.Parameter(torch.empty(sum(feature_dims), device=device, dtype=dtype))
            self.register_parameter(name, None if feature_norm == "none" else parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """An identity LayerNorm."""
        if self.norm_weight is not None and self.norm_bias is not None:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    def forward(
        self,
        query: Tensor,
        features: Sequence[Tensor],
        *,
        window_index: Tensor | None = None,
        saliency: Tensor | None = None,
        attention_bias: Tensor | None = None,
    ) -> Tensor:
        """query (B, n_h, n_w, C) or (N, C), features a level (B, H, W, D_l) or (M, D_l) -> like query."""
        levels = list(features)
        if self.norm_weight is not None:
            levels = [joined_features(levels, self.norm_weight, self.norm_bias, 1e-6, self.feature_norm)]
        out = local_attention(
            query.unsqueeze(-2),  # (..., 1, C)
            levels,
            window_index=window_index,
            attention_bias=attention_bias,
            saliency=saliency,
            backend=self.backend,
        )
        assert isinstance(out, Tensor)
        return out.squeeze(-2)

    def extra_repr(self) -> str:
        return f"{self.feature_dims}, feature_norm={self.feature_norm!r}"
