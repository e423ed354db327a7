"""``PixelShuffleProjector``: a window's features in the channels of one token, as InternVL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.compression.projectors._windows import window_rows
from vr_kernels.compression.projectors.base import DividingProjector
from vr_kernels.nn._sizes import check_positive_number


class PixelShuffleProjector(DividingProjector):
    """InternVL 1.5's connector (arXiv:2404.16821): space to depth, LayerNorm, Linear, GELU, Linear.

    The channels of a token are ordered (dy, dx, c), those of InternVL's "v2" shuffle.

    >>> PixelShuffleProjector(32, 48)([torch.randn(1, 4, 6, 32)]).tokens.shape
    torch.Size([1, 6, 48])
    """

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window)
        check_positive_number(type(self).__name__, "norm_eps", norm_eps)
        width = self.feature_dims[0] * self.window[0] * self.window[1]
        self.layer_norm = nn.LayerNorm(width, eps=norm_eps, device=device, dtype=dtype)
        self.linear_1 = nn.Linear(width, hidden_size, device=device, dtype=dtype)
        self.linear_2 = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)

    @property
    def _reader(self) -> nn.Module:
        return self.linear_1

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        windows = window_rows(levels[0], grid).flatten(3)  # (tiles, n_h, n_w, s_h*s_w*C)
        tokens = self.linear_2(F.gelu(self.linear_1(self.layer_norm(windows))))
        return tokens.flatten(1, 2)  # type: ignore[no-any-return]
