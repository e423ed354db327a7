"""``TokenFeatureCrossAttention``: the vision tokens in the stream resample the encoder's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.nn._linear import check_input, plain_linear, scaled
from vr_kernels.nn._literal_attention import LiteralLocalAttention
from vr_kernels.nn._map_inputs import as_table, as_tiles, check_leading_shape, check_stream, checked_levels
from vr_kernels.nn._sizes import check_tensor, check_type
from vr_kernels.nn.deformable_cross_attention import DeformableCrossAttention
from vr_kernels.nn.global_cross_attention import GlobalCrossAttention
from vr_kernels.nn.local_cross_attention import LocalCrossAttention
from vr_kernels.nn.vision_remember_config import VisionRememberConfig
from vr_kernels.nn.vision_token_map import VisionTokenMap
from vr_kernels.ops import gather_tokens, scatter_add_tokens

NAME = "TokenFeatureCrossAttention"

INTERACTIONS: dict[str, Callable[..., nn.Module]] = {
    "local": LocalCrossAttention,
    "global": GlobalCrossAttention,
    "deformable": DeformableCrossAttention,
}


class TokenFeatureCrossAttention(nn.Module):
    """The Token-Feature Cross-Attention layer of Vision Remember (v2, §3.2; v1's SELA, §4.2, with a saliency map).

    ``h[v] += contraction(attention(expansion(norm(h[v])), features of v))`` for every vision token v; all other rows of
    the stream pass through bit for bit. The contraction starts at zero, so that the layer starts as the identity.

    A batch without an image runs through every parameter with no row to change, so that each has a gradient, of zero:
    data-parallel training needs no parameter left out.

    Args:
        config: its fields on the cross-attention; see ``VisionRememberConfig``.
        backend: of the windowed attention, as ``LocalCrossAttention`` takes it.

    Raises:
        TypeError: a config that is no ``VisionRememberConfig``.

    >>> config = VisionRememberConfig(hidden_size=32, feature_dims=(16, 16), num_heads=4, layers=("cross_attention",))
    >>> layer = TokenFeatureCrossAttention(config)
    >>> image_mask = torch.tensor([[False, True, True, True, True, False]])
    >>> vision_map = VisionTokenMap.from_grid(image_mask, grid=(2, 2), feature_grid=(6, 6))
    >>> levels = [torch.randn(1, 6, 6, 16) for _ in range(2)]
    >>> layer(torch.randn(1, 6, 32), vision_map, levels).shape
    torch.Size([1, 6, 32])
    """

    gate: nn.Parameter | None
    window_position: nn.Parameter | None

    def __init__(
        self,
        config: VisionRememberConfig,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_type(NAME, "config", config, VisionRememberConfig)
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width, channels = config.hidden_size, sum(config.feature_dims)
        norms = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
        norm = norms.get(config.query_norm)
        self.query_norm = nn.Identity() if norm is None else norm(width, eps=config.norm_eps, **factory)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=config.bias, **factory)

        self.expansion: nn.Module = linear(width, channels)
        if config.expansion == "mlp":
            self.expansion = nn.Sequential(self.expansion, nn.GELU(), linear(channels, channels))
        self.attention = _attention(config, backend, factory)
        self.contraction: nn.Module = linear(channels, width)
        self.window_position = self.gate = None
        if config.window_position == "learned" and config.window is not None:
            slots = config.window[0] * config.window[1]
            self.window_position = nn.Parameter(torch.empty(config.heads[0], slots, **factory))
        if config.residual == "gate":
            self.gate = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform expansion and contraction, but a contraction of zero where config.residual is "zero"; biases,
        gate and position zero. The attention and the norm as they do themselves."""
        for module in (self.query_norm, self.attention):
            if not isinstance(module, nn.Identity):
                module.reset_parameters()  # type: ignore[operator]
        for module in (*self.expansion.modules(), self.contraction):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.residual == "zero" and isinstance(self.contraction, nn.Linear):
            nn.init.zeros_(self.contraction.weight)
        for parameter in (self.gate, self.window_position):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def forward(
        self,
        hidden_states: Tensor,
        vision_map: VisionTokenMap,
        features: Tensor | Sequence[Tensor] | None,
        *,
        saliency: Tensor | None = None,
    ) -> Tensor:
        """Resample the features at the vision tokens.

        Args:
            hidden_states: (B, T, D); never written.
            vision_map: made for this B, T and these features.
            features: one tensor a level, (tiles, H, W, D_l) or (M, D_l), any strides; None where there is no image.
            saliency: (tiles, H, W) or (M,), exactly if config.saliency is not "none" and there are features.

        Returns:
            (B, T, D), a new tensor in the dtype of hidden_states.

        Raises:
            ValueError: what does not fit the map or the config.
            TypeError: what is no tensor or no ``VisionTokenMap``; a stream in another dtype than the weights, or
                features in another than the stream (autocast converts them); a saliency that is neither in the
                stream's dtype nor float32.
        """
        levels = self._check(hidden_states, vision_map, features, saliency)
        rows = vision_map.rows[None]  # (1, V): all images as one, for here each token is alone
        norm = self.query_norm
        # An offloaded weight comes to its device when its own module is called, and not before.
        if type(norm) is nn.RMSNorm and norm.weight.device == hidden_states.device:
            tokens = gather_tokens(hidden_states, rows, norm_weight=norm.weight, norm_eps=self.config.norm_eps)
        else:
            tokens = norm(gather_tokens(hidden_states, rows))
        query = self.expansion(tokens[0])  # (V, C)
        update = self.contraction(self._attend(query, vision_map, levels, saliency))  # (V, D)
        if self.gate is not None:
            update = update * self.gate.tanh()
        return scatter_add_tokens(hidden_states, rows, update[None])

    def _attend(
        self, query: Tensor, vision_map: VisionTokenMap, levels: list[Tensor], saliency: Tensor | None
    ) -> Tensor:
        """query (V, C) -> (V, C): over the tiles' grid where the tokens fill it or the interaction asks for it."""
        options = {} if self.window_position is None else {"attention_bias": self.window_position}
        whole = vision_map.cells is None and not vision_map.ragged
        if vision_map.grid is None or (self.config.interaction == "local" and not whole):  # windows by their index
            levels = [as_table(level, 1) for level in levels]
            salient = None if saliency is None else as_table(saliency, 0)
            index = vision_map.window_index
            return self.attention(query, levels, window_index=index, saliency=salient, **options)  # type: ignore[no-any-return]
        levels = [as_tiles(vision_map, level, 1) for level in levels]
        salient = None if saliency is None else as_tiles(vision_map, saliency, 0)
        shape, cells = (vision_map.num_tiles, *vision_map.grid), vision_map.cells
        if cells is not None:
            query = query.new_zeros(shape[0] * shape[1] * shape[2], query.shape[1]).index_copy(0, cells, query)
        out = self.attention(query.unflatten(0, shape), levels, saliency=salient, **options).flatten(0, 2)
        return out if cells is None else out.index_select(0, cells)  # type: ignore[no-any-return]

    def _check(
        self,
        hidden_states: Tensor,
        vision_map: VisionTokenMap,
        features: Tensor | Sequence[Tensor] | None,
        saliency: Tensor | None,
    ) -> list[Tensor]:
        config = self.config
        check_stream(NAME, hidden_states, vision_map, config.hidden_size)
        first = self.expansion[0] if isinstance(self.expansion, nn.Sequential) else self.expansion
        check_input(NAME, "hidden_states", hidden_states, first)
        levels = checked_levels(NAME, vision_map, features, config.feature_dims, hidden_states)
        if saliency is not None:
            check_tensor(NAME, "saliency", saliency)
            check_leading_shape(NAME, "saliency", vision_map, tuple(saliency.shape))
        if (saliency is not None) != (config.saliency != "none") and not (saliency is None and features is None):
            given = "None" if saliency is None else "given"
            raise ValueError(
                f"{NAME}: saliency is {given}, and config.saliency is {config.saliency!r}; they must agree"
            )
        if config.interaction != "local" and vision_map.grid is None:
            raise ValueError(
                f"{NAME}: the map has no grid, and config.interaction is {config.interaction!r}; windows of any other "
                "geometry are read by 'local' alone"
            )
        if vision_map.ragged and (config.ragged_windows == "reject" or self.window_position is not None):
            raise ValueError(
                f"{NAME}: the map has feature_grid {vision_map.feature_grid} and grid {vision_map.grid}, whose windows "
                "are ragged; config.ragged_windows must be 'adaptive' and config.window_position 'none' for them"
            )
        if config.window is not None and vision_map.grid is not None and not vision_map.ragged:
            assert vision_map.feature_grid is not None
            window = tuple(size // n for size, n in zip(vision_map.feature_grid, vision_map.grid, strict=True))
            if window != config.window:
                raise ValueError(f"{NAME}: the map's windows are {window}, and config.window is {config.window}")
        return levels

    @torch.no_grad()
    def fold_(self) -> TokenFeatureCrossAttention:
        """Merge adjacent linear maps, for inference: the same function up to rounding, computed with less.

        The expansion's last Linear goes into W_q, W_o and the contraction become one, with the gate in it, and
        ``LocalCrossAttention.fold_`` does the rest. State-dict keys change with what is merged away.

        Raises:
            ValueError: an attention without projections to fold into ("global", "deformable", literal).
            TypeError: a Linear that is not plain (adapted, parametrised, quantised, sharded).
        """
        name = f"{NAME}.fold_"
        if not isinstance(self.attention, LocalCrossAttention):
            raise ValueError(
                f"{name}: the attention is {type(self.attention).__name__}; it must be LocalCrossAttention"
            )
        mlp = isinstance(self.expansion, nn.Sequential)
        before = plain_linear(name, "expansion", self.expansion[-1] if mlp else self.expansion)  # type: ignore[index]
        after = plain_linear(name, "contraction", self.contraction)
        if self.gate is not None:
            after = scaled(after, self.gate.double().tanh())
        self.attention.fold_(before=before, after=after)
        # Nothing below can be refused.
        self.expansion = nn.Sequential(*list(self.expansion)[:-1]) if mlp else nn.Identity()  # type: ignore[call-overload]
        self.contraction, self.gate = nn.Identity(), None
        return self

    def extra_repr(self) -> str:
        config = self.config
        return (
            f"{config.hidden_size}, {config.feature_dims}, interaction={config.interaction!r}, "
            f"residual={config.residual!r}, saliency={config.saliency!r}, window_position={config.window_position!r}"
        )


def _attention(config: VisionRememberConfig, backend: str | None, factory: dict[str, Any]) -> nn.Module:
    if config.literal:
        return LiteralLocalAttention(config.feature_dims, feature_norm=config.feature_norm, backend=backend, **factory)
    heads, head_dim = config.heads
    return INTERACTIONS[config.interaction](
        sum(config.feature_dims),
        config.feature_dims,
        heads,
        head_dim=head_dim,
        bias=config.bias,
        feature_norm=config.feature_norm,
        saliency_on="feature" if config.saliency == "feature" else "value",
        backend=backend,
        **factory,
    )
