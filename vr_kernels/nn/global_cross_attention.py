"""``GlobalCrossAttention``: the ablation in which each token reads its whole tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.nn._cross_attention import ProjectedCrossAttention
from vr_kernels.ops.local_cross_attention.features import joined_features


class GlobalCrossAttention(ProjectedCrossAttention):
    """Each token attends to all H*W features of its tile (Vision Remember v2, Table 5a: global).

    The parameters, their names and ``forward`` are those of ``LocalCrossAttention``: a state dict of one loads into the
    other. Keys and values are projected once a feature, and attention is torch's ``scaled_dot_product_attention``:
    where every token reads everything nothing is left for a kernel to save.

    Args:
        query_dim, feature_dims, num_heads, head_dim, out_dim, bias, feature_norm, saliency_on: as
            ``LocalCrossAttention``.
        backend: None; there is no kernel to choose.

    Raises:
        ValueError, TypeError: sizes or names that ``LocalCrossAttention`` refuses; a backend.

    >>> attention = GlobalCrossAttention(64, (32, 32, 32), num_heads=4, feature_norm="level")
    >>> levels = [torch.randn(2, 6, 6, 32) for _ in range(3)]
    >>> attention(torch.randn(2, 3, 3, 64), levels).shape
    torch.Size([2, 3, 3, 64])
    """

    def __init__(
        self,
        query_dim: int,
        feature_dims: int | Sequence[int],
        num_heads: int,
        *,
        head_dim: int | None = None,
        out_dim: int | None = None,
        bias: bool = False,
        feature_norm: str = "none",
        saliency_on: str = "value",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if backend is not None:
            raise ValueError(
                f"GlobalCrossAttention: backend is {backend!r}; it must be None: the attention is torch's own"
            )
        super().__init__(
            query_dim,
            feature_dims,
            num_heads,
            head_dim=head_dim,
            out_dim=out_dim,
            bias=bias,
            feature_norm=feature_norm,
            saliency_on=saliency_on,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        query: Tensor,
        features: Tensor | Sequence[Tensor],
        *,
        window_index: Tensor | None = None,
        saliency: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Resample ``features`` at the tokens ``query``.

        Args:
            query: (B, n_h, n_w, D_q), of any n_h and n_w: the tokens' places do not matter.
            features: one tensor or one a level, (B, H, W, D_l), widths as ``feature_dims``, one grid.
            window_index: None; an index of windows does not tell which tile a token belongs to.
            saliency: (B, H, W), multiplies the values without renormalisation; the query's dtype or float32.

        Returns:
            query's shape with out_dim channels; with ``need_weights`` also the weights (B, n_h, n_w, h, H*W), for which
            the attention is computed in plain PyTorch.

        Raises:
            ValueError: a window_index; sizes that do not fit.
            TypeError: what is no tensor; dtypes that do not fit (autocast converts the query's and the features'); a
                need_weights that is no bool.
        """
        levels = self._tiles(query, features, window_index, saliency, need_weights, one_grid=True)
        q = self._heads(self._queries(query).flatten(1, 2))  # (B, h, n_h*n_w, d)
        key, value = self._keys_and_values(levels, saliency)  # (B, h, H*W, d)
        if need_weights:
            out, weights = _attend(q, key, value)
        else:
            out = F.scaled_dot_product_attention(q, key, value)
        out = self.out_proj(out.transpose(1, 2).flatten(2)).unflatten(1, query.shape[1:3])  # (B, n_h, n_w, out_dim)
        if need_weights:
            return out, weights.transpose(1, 2).unflatten(1, query.shape[1:3])
        return out  # type: ignore[no-any-return]

    def _keys_and_values(self, levels: list[Tensor], saliency: Tensor | None) -> tuple[Tensor, Tensor]:
        joined = joined_features(levels, self.norm_weight, self.norm_bias, self.norm_eps, self.norm_groups)
        joined = joined.flatten(1, 2)  # (B, H*W, C)
        resampled = joined
        if saliency is not None:
            saliency = saliency.flatten(1).unsqueeze(-1)  # (B, H*W, 1)
            if self.saliency_on == "feature":
                resampled = joined * saliency.to(joined.dtype)
        key = F.linear(joined, self.key_weight, self.key_bias)
        value = F.linear(resampled, self.value_weight, self.value_bias)
        if saliency is not None and self.saliency_on == "value":
            value = value * saliency.to(value.dtype)
        return self._heads(key), self._heads(value)

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, N, h*d) -> (B, h, N, d)"""
        return rows.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # type: ignore[no-any-return]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the attention weights (B, h, N, H*W), softmax and sums in float32 at least."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.softmax(-1)
    return (weights @ value.to(wide)).to(query.dtype), weights.to(query.dtype)
