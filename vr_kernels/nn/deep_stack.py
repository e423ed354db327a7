"""``DeepStack``: an encoder level's windows, merged and added to the vision tokens between two decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.nn._linear import check_dtype
from vr_kernels.nn._map_inputs import as_table, check_stream, check_whole_windows, checked_levels, refuse_unread
from vr_kernels.nn._sizes import check_positive, level_widths
from vr_kernels.nn._token_tables import check_sizes
from vr_kernels.nn.vision_token_map import VisionTokenMap
from vr_kernels.ops import scatter_add_tokens
from vr_kernels.ops._arguments import Arguments


class DeepStack(nn.Module):
    """DeepStack (arXiv:2406.04334) in Qwen3-VL's form, which Vision Remember v2 compares with (Table 3).

    ``h[v] += linear_fc2(gelu(linear_fc1(norm(window of v))))`` for every vision token v: its window's features side by
    side, (dy, dx, c), layer-normalised together (eps 1e-6). All other rows of the stream pass through bit for bit.
    Qwen3-VL has one block after each of the decoder layers 0, 1 and 2, each with a level of its own: what its vision
    blocks 8, 16 and 24 make, counted from 0, which is ``hidden_states`` 9, 17 and 25.

    A batch without an image runs through every parameter with no row to change, so that each has a gradient, of zero.

    Args:
        hidden_size: D. feature_dims: width of each level that ``forward`` gets; an int for a single level.
        window: (s_h, s_w) of the map.
        level: which of them this block reads.
        zero_init: start as the identity (linear_fc2 is zero), so that a block may be put into a trained model. False
            is Qwen3-VL, which trains with its blocks from the start.

    Raises:
        ValueError: sizes below one; a level that feature_dims does not have. TypeError: a size that is no int.

    >>> block = DeepStack(64, (32, 32), window=(2, 2), level=1, zero_init=False)
    >>> image_mask = torch.tensor([[False, True, True, True, True, False]])
    >>> vision_map = VisionTokenMap.from_grid(image_mask, grid=(2, 2), feature_grid=(4, 4))
    >>> block(torch.randn(1, 6, 64), vision_map, [torch.randn(1, 4, 4, 32) for _ in range(2)]).shape
    torch.Size([1, 6, 64])
    """

    def __init__(
        self,
        hidden_size: int,
        feature_dims: int | Sequence[int],
        *,
        window: tuple[int, int] = (2, 2),
        level: int = 0,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("DeepStack", hidden_size=hidden_size)
        dims = level_widths("DeepStack", "feature_dims", feature_dims)
        check_sizes(Arguments("DeepStack"), "window", window)
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(dims):
            raise ValueError(
                f"DeepStack: level is {level!r}; it must be in [0, {len(dims)}), one of feature_dims {dims}"
            )
        self.hidden_size, self.feature_dims, self.window = hidden_size, dims, (window[0], window[1])
        self.level, self.zero_init = level, zero_init
        width = window[0] * window[1] * dims[level]
        self.norm = nn.LayerNorm(width, eps=1e-6, device=device, dtype=dtype)
        self.linear_fc1 = nn.Linear(width, width, device=device, dtype=dtype)
        self.linear_fc2 = nn.Linear(width, hidden_size, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layers as they do themselves; with zero_init the last Linear is zero."""
        for layer in (self.norm, self.linear_fc1, self.linear_fc2):
            layer.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.linear_fc2.weight)
            nn.init.zeros_(self.linear_fc2.bias)

    def forward(
        self,
        hidden_states: Tensor,
        vision_map: VisionTokenMap,
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        saliency: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Add the merged windows to the vision tokens of the stream.

        Args:
            hidden_states: (B, T, D); never written.
            vision_map: made for this B, T and these features, with whole windows of ``window``.
            features: one tensor a level, (tiles, H, W, D_l) or (M, D_l), any strides; None where there is no image.
            saliency, text_mask: None; they are there so that the call is ``VisionRemember``'s.

        Returns:
            (B, T, D), a new tensor in the dtype of hidden_states.

        Raises:
            ValueError: what does not fit the map; windows of another size, ragged or without a grid; a saliency or
                text_mask. TypeError: a stream or a level in another dtype than the weights (autocast converts it).
        """
        refuse_unread("DeepStack", saliency=saliency, text_mask=text_mask)
        check_stream("DeepStack", hidden_states, vision_map, self.hidden_size)
        check_whole_windows("DeepStack", vision_map, self.window)
        levels = checked_levels("DeepStack", vision_map, features, self.feature_dims, hidden_states)
        check_dtype("DeepStack", "hidden_states", hidden_states, self.linear_fc2)
        check_dtype("DeepStack", f"features[{self.level}]", levels[self.level], self.linear_fc1)
        windows = as_table(levels[self.level], 1)[vision_map.window_index]  # (V, s_h*s_w, C)
        update = self.linear_fc2(F.gelu(self.linear_fc1(self.norm(windows.flatten(1)))))  # (V, D)
        return scatter_add_tokens(hidden_states, vision_map.rows[None], update[None])

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, {self.feature_dims}, window={self.window}, level={self.level}, "
            f"zero_init={self.zero_init}"
        )
