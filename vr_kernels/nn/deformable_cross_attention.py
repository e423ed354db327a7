"""``DeformableCrossAttention``: the ablation in which each token samples points that it chooses itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vr_kernels.nn._cross_attention import CrossAttention
from vr_kernels.nn._linear import check_input
from vr_kernels.nn._sizes import check_positive
from vr_kernels.ops import deformable_attention


class DeformableCrossAttention(CrossAttention):
    """Each token mixes a few points of every level (Vision Remember v2, Table 5a: deformable; arXiv:2010.04159).

    ``out = W_o sum_l sum_p a_lp (W_v,l f_l)(centre + offset_lp / size_l)`` for each head by itself. The offsets, in
    features, are linear in the query, and so is what the weights a are a softmax of, over all levels and points. The
    centre is that of the token's window.
    Levels are projected one by one and never concatenated, and may have grids of different sizes.

    Args:
        query_dim: width D_q of the tokens.
        feature_dims: width of each level, in the order in which ``forward`` gets them; an int for a single level.
        num_heads: h. head_dim: d; None is query_dim / h.
        num_points: points a head samples in each level.
        out_dim: width of the output; None is query_dim.
        bias: biases of value and output projections. Offsets and weights always have theirs: they are the start.
        feature_norm: "level", LayerNorm of each level (eps 1e-6), or "none".
        saliency_on: "value", or "feature": before the value projection, its bias unscaled.
        backend: passed on to ``vr_kernels.deformable_attention``.

    Raises:
        ValueError: sizes below one; no head_dim and heads that do not divide query_dim; an unknown name; a norm over
            "all" levels, which are not concatenated. TypeError: a size that is no int.

    >>> attention = DeformableCrossAttention(64, (32, 48), feature_norm="level")
    >>> levels = [torch.randn(2, 6, 6, 32), torch.randn(2, 6, 6, 48)]
    >>> attention(torch.randn(2, 3, 3, 64), levels).shape
    torch.Size([2, 3, 3, 64])
    """

    def __init__(
        self,
        query_dim: int,
        feature_dims: int | Sequence[int],
        num_heads: int = 8,
        *,
        head_dim: int | None = None,
        num_points: int = 4,
        out_dim: int | None = None,
        bias: bool = False,
        feature_norm: str = "none",
        saliency_on: str = "value",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            query_dim,
            feature_dims,
            num_heads,
            head_dim=head_dim,
            out_dim=out_dim,
            feature_norm=feature_norm,
            saliency_on=saliency_on,
            backend=backend,
        )
        if feature_norm == "all":
            raise ValueError(
                'DeformableCrossAttention: feature_norm is "all", and the levels are not concatenated here; '
                'it must be "none" or "level"'
            )
        check_positive("DeformableCrossAttention", num_points=num_points)
        self.num_points = num_points
        inner, samples = self.num_heads * self.head_dim, self.num_heads * len(self.feature_dims) * num_points

        def linear(in_features: int, out_features: int, bias: bool = bias) -> nn.Linear:
            return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)

        def norm(width: int) -> nn.Module:
            if feature_norm == "none":
                return nn.Identity()
            return nn.LayerNorm(width, eps=self.norm_eps, device=device, dtype=dtype)

        self.sampling_offsets = linear(query_dim, samples * 2, bias=True)
        self.attention_weights = linear(query_dim, samples, bias=True)
        self.feature_norms = nn.ModuleList(norm(width) for width in self.feature_dims)
        self.value_projs = nn.ModuleList(linear(width, inner) for width in self.feature_dims)
        self.out_proj = linear(inner, self.out_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As Deformable DETR: head i looks in direction i of h around the circle, its point p standing p + 1 features
        away on a square, in every level; all weights equal. Xavier-uniform projections, zero biases, identity norms."""
        for sampled in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(sampled.weight)
        # On the CPU whatever torch's default device is, which may be one that holds no numbers.
        angle = torch.arange(self.num_heads, dtype=torch.float64, device="cpu") * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)  # (h, 2): x, y
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float64, device="cpu")
        offsets = direction[:, None, None] * distance[:, None]  # (h, 1, P, 2)
        offsets = offsets.expand(-1, len(self.feature_dims), -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.bias)
        for module in (*self.value_projs, self.out_proj):
            assert isinstance(module, nn.Linear)
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.feature_norms:
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self,
        query: Tensor,
        features: Tensor | Sequence[Tensor],
        *,
        window_index: Tensor | None = None,
        saliency: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor:
        """Resample ``features`` at the tokens ``query``.

        Args:
            query: (B, n_h, n_w, D_q): the window of token (i, j) has its centre at ((i + 1/2) / n_h, (j + 1/2) / n_w).
            features: one tensor or one a level, (B, H_l, W_l, D_l), widths as ``feature_dims``.
            window_index: None; an index of windows does not tell a token's place in its tile.
            saliency: (B, H, W), multiplies the values without renormalisation; all levels must then have that grid. The
                query's dtype or float32.
            need_weights: False; weights belong to points between features, not to features.

        Returns:
            query's shape with out_dim channels.

        Raises:
            ValueError: a window_index; need_weights; sizes that do not fit.
            TypeError: what is no tensor; dtypes that do not fit (autocast converts the query's and the features'); a
                need_weights that is no bool.
        """
        levels = self._tiles(query, features, window_index, saliency, need_weights, one_grid=False)
        if need_weights:
            raise ValueError(
                "DeformableCrossAttention: need_weights is True, and the weights belong to points between features, "
                "not to features; see sample_points"
            )
        check_input("DeformableCrossAttention", "query", query, self.sampling_offsets)
        locations, weights = self.sample_points(query, [(level.shape[1], level.shape[2]) for level in levels])
        out = deformable_attention(
            [self._value(i, level, saliency) for i, level in enumerate(levels)],
            locations.flatten(1, 2),  # (B, n_h*n_w, h, L, P, 2)
            weights.flatten(1, 2),  # (B, n_h*n_w, h, L, P)
            backend=self.backend,
        )  # (B, n_h*n_w, h, d)
        return self.out_proj(out.flatten(2)).unflatten(1, query.shape[1:3])  # type: ignore[no-any-return]

    def sample_points(self, query: Tensor, grids: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Where the tokens (B, n_h, n_w, D_q) look in levels of (H_l, W_l), and how much each point weighs.

        Returns:
            Locations (B, n_h, n_w, h, L, P, 2), each (x, y) from 0 to 1 over the tile, and weights
            (B, n_h, n_w, h, L, P) that sum to one over (L, P); float32 (float64 of a float64 query).
        """
        shape = (self.num_heads, len(self.feature_dims), self.num_points)
        wide = torch.promote_types(query.dtype, torch.float32)
        # Wide before the centre is added: a place rounded to bfloat16 is off by some hundredths of a feature.
        offsets = self.sampling_offsets(query).to(wide).unflatten(-1, (*shape, 2))  # (B, n_h, n_w, h, L, P, 2)
        scores = self.attention_weights(query).to(wide)
        sizes = torch.tensor([(width, height) for height, width in grids], dtype=wide, device=query.device)
        locations = _centres(query, wide) + offsets / sizes[:, None]
        weights = scores.unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        return locations, weights

    def _value(self, i: int, level: Tensor, saliency: Tensor | None) -> Tensor:
        """Level number i, (B, H, W, D_l) -> (B, H, W, h, d)."""
        feature = self.feature_norms[i](level)
        if saliency is not None and self.saliency_on == "feature":
            feature = feature * saliency.unsqueeze(-1).to(feature.dtype)
        value = self.value_projs[i](feature)
        if saliency is not None and self.saliency_on == "value":
            value = value * saliency.unsqueeze(-1).to(value.dtype)
        return value.unflatten(-1, (self.num_heads, self.head_dim))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"{self.query_dim}, {self.feature_dims}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"num_points={self.num_points}, out_dim={self.out_dim}, bias={self.out_proj.bias is not None}, "
            f"feature_norm={self.feature_norm!r}, saliency_on={self.saliency_on!r}"
        )


def _centres(query: Tensor, dtype: torch.dtype) -> Tensor:
    """The windows' centres as (x, y), (n_h, n_w, 1, 1, 1, 2)."""
    n_h, n_w = query.shape[1:3]
    y = (torch.arange(n_h, dtype=dtype, device=query.device) + 0.5) / n_h
    x = (torch.arange(n_w, dtype=dtype, device=query.device) + 0.5) / n_w
    centres = torch.stack((x.expand(n_h, n_w), y[:, None].expand(n_h, n_w)), -1)
    return centres[:, :, None, None, None]
