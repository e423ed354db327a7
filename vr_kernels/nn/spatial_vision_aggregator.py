"""``SpatialVisionAggregator``: the vision tokens attend to their windows of every encoder, between decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.nn._linear import check_dtype
from vr_kernels.nn._map_inputs import as_tiles, check_stream, check_whole_windows, checked_levels, refuse_unread
from vr_kernels.nn._sizes import check_positive, level_widths
from vr_kernels.nn._token_tables import check_sizes
from vr_kernels.nn.vision_token_map import VisionTokenMap
from vr_kernels.ops import gather_tokens, local_attention, scatter_add_tokens
from vr_kernels.ops._arguments import Arguments

NAME = "SpatialVisionAggregator"


class SpatialVisionAggregator(nn.Module):
    """SVA (Cambrian-1, arXiv:2406.16860, §3.2), which Vision Remember v2 compares with (Table 3).

    For every vision token v, c the mean of its tile's first level, and one softmax over its windows of all levels::

        q = proj_in([h[v], proj_context(c)])
        a = out_proj(attention(W_q norm(q), W_k,l norm(f_l + p_l), W_v,l norm(f_l + p_l)))
        h[v] += linear_2(gelu(linear_1(norm(q + a))))

    All other rows of the stream pass through bit for bit, newlines among them. There is no bias but in the norms (eps
    1e-5). Each level has keys and values of its own, and so the absorbed form of ``local_cross_attention``, which
    concatenates levels into one key, does not apply: ``local_attention`` reads given K and V. Cambrian projects every
    encoder to width 1024 by an MLP that all its blocks share; that MLP is the caller's.

    A batch without an image runs through every parameter with no row to change, so that each has a gradient, of zero.

    Args:
        hidden_size: D. feature_dims: width of each level, or encoder; an int for a single one.
        window: (s_h, s_w) of the map; a learned position of that size is part of each level, if there is more than one
            feature a window. None: no position, and windows of any size, ragged ones too.
        hidden_dim: E, width of the attention and of the MLP. num_heads: of the attention; it divides hidden_dim.
        position_on: "feature" (Cambrian's code: keys and values have the position) or "key" (keys alone).
        zero_init: start as the identity (linear_2 is zero), so that a block may be put into a trained model. False is
            Cambrian, which trains with its blocks from the start.
        backend: passed on to ``vr_kernels.local_attention``.

    Raises:
        ValueError: sizes below one; num_heads that do not divide hidden_dim; an unknown position_on.
        TypeError: a size that is no int.

    >>> block = SpatialVisionAggregator(64, (32, 48), window=(2, 2), hidden_dim=128, zero_init=False)
    >>> image_mask = torch.tensor([[False, True, True, True, True, False]])
    >>> vision_map = VisionTokenMap.from_grid(image_mask, grid=(2, 2), feature_grid=(4, 4))
    >>> block(torch.randn(1, 6, 64), vision_map, [torch.randn(1, 4, 4, width) for width in (32, 48)]).shape
    torch.Size([1, 6, 64])
    """

    def __init__(
        self,
        hidden_size: int,
        feature_dims: int | Sequence[int],
        *,
        window: tuple[int, int] | None = (2, 2),
        hidden_dim: int = 1024,
        num_heads: int = 16,
        position_on: str = "feature",
        zero_init: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(NAME, hidden_size=hidden_size, hidden_dim=hidden_dim, num_heads=num_heads)
        dims = level_widths(NAME, "feature_dims", feature_dims)
        if window is not None:
            check_sizes(Arguments(NAME), "window", window)
        if hidden_dim % num_heads != 0:
            raise ValueError(
                f"{NAME}: hidden_dim is {hidden_dim}, num_heads is {num_heads}; num_heads must be a positive divisor "
                "of hidden_dim"
            )
        if position_on not in ("feature", "key"):
            raise ValueError(f'{NAME}: position_on is {position_on!r}; it must be "feature" or "key"')
        self.hidden_size, self.feature_dims = hidden_size, dims
        self.window = None if window is None else (window[0], window[1])
        self.hidden_dim, self.num_heads, self.position_on = hidden_dim, num_heads, position_on
        self.zero_init, self.backend = zero_init, backend

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        def normed(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(inputs, device=device, dtype=dtype), linear(inputs, hidden_dim))

        self.proj_context = linear(dims[0], hidden_dim)
        self.proj_in = linear(hidden_size + hidden_dim, hidden_dim)
        self.query_proj = normed(hidden_dim)
        self.key_projs = nn.ModuleList(normed(width) for width in dims)
        self.value_projs = nn.ModuleList(normed(width) for width in dims)
        self.out_proj = linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, device=device, dtype=dtype)
        self.linear_1, self.linear_2 = linear(hidden_dim, hidden_dim), linear(hidden_dim, hidden_size)
        slots = 1 if window is None else window[0] * window[1]
        self.positions = nn.ParameterList(
            nn.Parameter(torch.empty(slots, width, device=device, dtype=dtype)) for width in dims if slots > 1
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layers as they do themselves, positions standard normal; with zero_init the last Linear is zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
        for position in self.positions:
            nn.init.normal_(position)
        if self.zero_init:
            nn.init.zeros_(self.linear_2.weight)

    def forward(
        self,
        hidden_states: Tensor,
        vision_map: VisionTokenMap,
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        saliency: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Refresh the vision tokens of the stream.

        Args:
            hidden_states: (B, T, D); never written.
            vision_map: made for this B, T and these features; it must have a grid, which says a token's tile.
            features: one tensor a level, (tiles, H, W, D_l) or (M, D_l), any strides; None where there is no image.
            saliency, text_mask: None; they are there so that the call is ``VisionRemember``'s.

        Returns:
            (B, T, D), a new tensor in the dtype of hidden_states.

        Raises:
            ValueError: what does not fit the map; a map without a grid, or with other windows than ``window``; a
                saliency or text_mask. TypeError: a stream or a level in another dtype than the weights (autocast
                converts it).
        """
        refuse_unread(NAME, saliency=saliency, text_mask=text_mask)
        check_stream(NAME, hidden_states, vision_map, self.hidden_size)
        check_whole_windows(NAME, vision_map, self.window)
        levels = checked_levels(NAME, vision_map, features, self.feature_dims, hidden_states)
        check_dtype(NAME, "hidden_states", hidden_states, self.proj_in)
        for i, (level, normed) in enumerate(zip(levels, self.key_projs, strict=True)):
            check_dtype(NAME, f"features[{i}]", level, normed[-1] if isinstance(normed, nn.Sequential) else None)
        levels = [as_tiles(vision_map, level, 1) for level in levels]  # (tiles, H, W, D_l)
        rows = vision_map.rows[None]  # (1, V)
        tokens = gather_tokens(hidden_states, rows)[0]  # (V, D)
        query = self.proj_in(torch.cat([tokens, self._context(vision_map, levels[0])], -1))  # (V, E)
        attended = query + self.out_proj(self._attend(self.query_proj(query), vision_map, levels))
        update = self.linear_2(F.gelu(self.linear_1(self.norm(attended))))  # (V, D)
        return scatter_add_tokens(hidden_states, rows, update[None])

    def _context(self, vision_map: VisionTokenMap, level: Tensor) -> Tensor:
        """The projected mean of each token's tile: level (tiles, H, W, C) -> (V, E)."""
        assert vision_map.grid is not None
        wide = torch.promote_types(level.dtype, torch.float32)
        mean = level.mean((1, 2), dtype=wide).to(level.dtype)  # (tiles, C)
        cells = vision_map.cells
        if cells is None:
            cells = torch.arange(len(vision_map.rows), device=level.device)
        tile = cells // (vision_map.grid[0] * vision_map.grid[1])
        return self.proj_context(mean)[tile]  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, vision_map: VisionTokenMap, levels: list[Tensor]) -> Tensor:
        """query (V, E) -> (V, E): one softmax over the windows of all levels, whose tables lie one after another."""
        keys, values = [], []
        for i, level in enumerate(levels):
            placed = self._placed(i, level)
            keys.append(self.key_projs[i](placed).flatten(0, 2))  # (M, E)
            values.append(self.value_projs[i](placed if self.position_on == "feature" else level).flatten(0, 2))
        index = vision_map.window_index.long()  # (V, K)
        shifted = [index.where(index < 0, index + i * vision_map.feature_rows) for i in range(len(levels))]
        out = local_attention(
            query.unflatten(-1, (self.num_heads, -1)),
            torch.cat(keys).unflatten(-1, (self.num_heads, -1)),  # (L*M, h, d)
            torch.cat(values).unflatten(-1, (self.num_heads, -1)),
            window_index=torch.cat(shifted, 1),  # (V, L*K)
            backend=self.backend,
        )
        assert isinstance(out, Tensor)
        return out.flatten(1)

    def _placed(self, i: int, level: Tensor) -> Tensor:
        """Level number i, (tiles, H, W, C), with the position of each feature inside its window added."""
        if self.window is None or len(self.positions) == 0:
            return level
        (s_h, s_w), (height, width) = self.window, level.shape[1:3]
        window: Tensor = self.positions[i].view(s_h, s_w, level.shape[-1])
        position = window.repeat(height // s_h, width // s_w, 1)  # (H, W, C)
        return level + position.to(level.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, {self.feature_dims}, window={self.window}, hidden_dim={self.hidden_dim}, "
            f"num_heads={self.num_heads}, position_on={self.position_on!r}, zero_init={self.zero_init}"
        )
