"""LLaVA's two-layer MLP, on the features as they are, on pooled ones, and on windows side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.compression.projectors._windows import window_mean, window_rows
from vr_kernels.compression.projectors.base import DividingProjector, Projector


class TwoLayerProjector(Projector):
    """``linear_2(gelu(linear_1(x)))``, the erf GELU: the names and the function of LLaVA's projector."""

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window)
        self.linear_1 = nn.Linear(self.input_width, hidden_size, device=device, dtype=dtype)
        self.linear_2 = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)

    @property
    def input_width(self) -> int:
        """Channels of what the first Linear reads."""
        return self.feature_dims[-1]

    @property
    def _reader(self) -> nn.Module:
        return self.linear_1

    def mlp(self, x: Tensor) -> Tensor:
        """(..., input_width) -> (..., D)."""
        return self.linear_2(F.gelu(self.linear_1(x)))  # type: ignore[no-any-return]


class MLPProjector(TwoLayerProjector):
    """LLaVA-1.5's projector (arXiv:2310.03744): every feature becomes a token. The window is not read.

    >>> projector = MLPProjector(32, 48)
    >>> projected = projector([torch.randn(1, 4, 6, 32)])
    >>> projected.tokens.shape, projected.grid, projected.window_index.shape
    (torch.Size([1, 24, 48]), (4, 6), torch.Size([24, 1]))
    """

    def output_grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        return self.mlp(levels[0]).flatten(1, 2)


class PoolProjector(TwoLayerProjector):
    """DeCo (arXiv:2405.20985): adaptive average pooling to the grid of tokens, then the MLP.

    >>> PoolProjector(32, 48, window=(3, 3))([torch.randn(1, 6, 7, 32)]).grid  # ragged windows in the second axis
    (2, 3)
    """

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        return self.mlp(window_mean(levels[0], grid)).flatten(1, 2)


class ConcatProjector(TwoLayerProjector, DividingProjector):
    """TokenConcat (LLaVA-STF, §4.3.3): the features of a window side by side, then the MLP.

    Channels are ordered (c, y, x), as in ``vr_kernels.nn.TokenConcat``.

    >>> ConcatProjector(32, 48)([torch.randn(1, 4, 4, 32)]).tokens.shape
    torch.Size([1, 4, 48])
    """

    @property
    def input_width(self) -> int:
        return self.feature_dims[0] * self.window[0] * self.window[1]

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        windows = window_rows(levels[0], grid)  # (tiles, n_h, n_w, s_h, s_w, C)
        return self.mlp(windows.movedim(-1, 3).flatten(3)).flatten(1, 2)
