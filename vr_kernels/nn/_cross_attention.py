"""What the cross-attention modules share: their sizes, their projections, and the checks of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.nn._linear import check_input
from vr_kernels.nn._sizes import check_positive, head_width, level_widths, levels_of
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._registration import cast_for_autocast, stand_in


class CrossAttention(nn.Module):
    """Sizes, checked; errors carry the class's name."""

    def __init__(
        self,
        query_dim: int,
        feature_dims: int | Sequence[int],
        num_heads: int,
        *,
        head_dim: int | None,
        out_dim: int | None,
        feature_norm: str,
        saliency_on: str,
        backend: str | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        out_dim = query_dim if out_dim is None else out_dim
        check_positive(name, query_dim=query_dim, num_heads=num_heads, out_dim=out_dim)
        dims = level_widths(name, "feature_dims", feature_dims)
        head_dim = head_width(name, "query_dim", query_dim, num_heads, head_dim)
        if feature_norm not in ("none", "all", "level"):
            raise ValueError(f'{name}: feature_norm is {feature_norm!r}; it must be "none", "all" or "level"')
        if saliency_on not in ("value", "feature"):
            raise ValueError(f'{name}: saliency_on is {saliency_on!r}; it must be "value" or "feature"')
        self.query_dim, self.feature_dims, self.num_heads = query_dim, dims, num_heads
        self.head_dim, self.out_dim, self.feature_norm = head_dim, out_dim, feature_norm
        self.norm_eps, self.saliency_on, self.backend = 1e-6, saliency_on, backend

    def _levels(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """One tensor a level, of the widths that the module was built for."""
        return levels_of(type(self).__name__, features, self.feature_dims)

    def _tiles(
        self,
        query: Tensor,
        features: Tensor | Sequence[Tensor],
        window_index: Tensor | None,
        saliency: Tensor | None,
        need_weights: bool,
        *,
        one_grid: bool,
    ) -> list[Tensor]:
        """The levels of a call that must know whole tiles; ``one_grid``: all levels must share it."""
        levels = self._levels(features)
        Arguments(type(self).__name__).flag("need_weights", need_weights)
        if window_index is not None:
            raise ValueError(
                f"{type(self).__name__}: window_index is given, and a token reads its whole tile, which an index of "
                "windows does not tell; give the grid form, query (B, n_h, n_w, D_q) and features (B, H, W, D_l), "
                "with what you like in the cells that hold no token"
            )
        # Under autocast a saliency map may come in its dtype, from cls_saliency, and the query and levels not.
        query, levels_cast = cast_for_autocast(query, levels, cast=stand_in)
        given = signatures(query, saliency, *levels_cast)
        _check_tiles(type(self).__name__, self.query_dim, given, one_grid or saliency is not None)
        return levels


@remember
def _check_tiles(operator: str, query_dim: int, given: tuple[Any, ...], one_grid: bool) -> None:
    query, saliency, *levels = given
    arguments = Arguments(operator)
    q = arguments.tensor("query", query)
    arguments.rank("query", q, {4: "(B, n_h, n_w, D_q)"})
    if q.shape[-1] != query_dim:
        raise arguments.error(f"query has width {q.shape[-1]}, query_dim is {query_dim}; they must be equal")
    first = arguments.tensor("features[0]", levels[0])
    for i, value in enumerate(levels):
        level = arguments.companion(f"features[{i}]", value, q)
        arguments.rank(f"features[{i}]", level, {4: "(B, H, W, D)"})
        if level.shape[0] != q.shape[0]:
            raise arguments.error(f"features[{i}] has batch {level.shape[0]}, query has {q.shape[0]}; make them equal")
        if level.shape[1] * level.shape[2] == 0:
            raise arguments.error(f"features[{i}] has grid {level.shape[1:3]}; a token needs a feature to attend to")
        if one_grid and level.shape[1:3] != first.shape[1:3]:
            raise arguments.error(
                f"features[{i}] has grid {level.shape[1:3]}, features[0] has {first.shape[1:3]}; "
                "all levels must share one grid"
            )
    arguments.auxiliary("saliency", saliency, q, [first.shape[:3]])


class ProjectedCrossAttention(CrossAttention):
    """Query, keys, values and output by one linear map each, the key's and value's over all levels together.

    ``key_weight`` and ``value_weight`` are Parameters of the module itself: who multiplies them with what is the
    subclass's affair.
    """

    key_bias: nn.Parameter | None
    value_bias: nn.Parameter | None
    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

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
        inner, channels = self.num_heads * self.head_dim, sum(self.feature_dims)
        self.query_proj = nn.Linear(query_dim, inner, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, self.out_dim, bias=bias, device=device, dtype=dtype)

        def parameter(wanted: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None

        self.key_weight = nn.Parameter(torch.empty(inner, channels, device=device, dtype=dtype))
        self.value_weight = nn.Parameter(torch.empty(inner, channels, device=device, dtype=dtype))
        self.register_parameter("key_bias", parameter(bias, inner))
        self.register_parameter("value_bias", parameter(bias, inner))
        self.register_parameter("norm_weight", parameter(feature_norm != "none", channels))
        self.register_parameter("norm_bias", parameter(feature_norm != "none", channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections and zero biases, as ``nn.MultiheadAttention``; an identity LayerNorm."""
        for weight in (self.query_proj.weight, self.key_weight, self.value_weight, self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        for bias in (self.query_proj.bias, self.key_bias, self.value_bias, self.out_proj.bias, self.norm_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)

    def _queries(self, query: Tensor) -> Tensor:
        check_input(type(self).__name__, "query", query, self.query_proj)
        return self.query_proj(query)  # type: ignore[no-any-return]

    @property
    def norm_groups(self) -> str:
        """As the operators name what a LayerNorm goes over."""
        return "level" if self.feature_norm == "level" else "all"

    def extra_repr(self) -> str:
        return (
            f"{self.query_dim}, {self.feature_dims}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"out_dim={self.out_dim}, bias={self.value_bias is not None}, feature_norm={self.feature_norm!r}, "
            f"saliency_on={self.saliency_on!r}"
        )
