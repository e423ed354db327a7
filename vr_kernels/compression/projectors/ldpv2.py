"""``LDPv2Projector``: MobileVLM V2's light projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.compression.projectors._windows import window_mean
from vr_kernels.compression.projectors.two_layer import TwoLayerProjector


class LDPv2Projector(TwoLayerProjector):
    """LDPv2 (MobileVLM V2, arXiv:2402.03766): the MLP, adaptive average pooling, a depthwise 3x3 convolution plus its
    input.

    A mean of what a Linear makes is what that Linear makes of the mean: so the second Linear runs once a token, after
    the pooling, and not once a feature.

    >>> LDPv2Projector(32, 48)([torch.randn(1, 6, 6, 32)]).tokens.shape
    torch.Size([1, 9, 48])
    """

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window, device=device, dtype=dtype)
        self.position = nn.Conv2d(
            hidden_size, hidden_size, 3, padding=1, groups=hidden_size, device=device, dtype=dtype
        )

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        pooled = self.linear_2(window_mean(F.gelu(self.linear_1(levels[0])), grid))  # (tiles, n_h, n_w, D)
        tokens = pooled.movedim(-1, 1)  # (tiles, D, n_h, n_w)
        return (tokens + self.position(tokens)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
