"""``DeformableProjector``: pooled features that sample more of the levels by deformable attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.compression.projectors._windows import window_mean
from vr_kernels.compression.projectors.two_layer import TwoLayerProjector
from vr_kernels.nn import DeformableCrossAttention


class DeformableProjector(TwoLayerProjector):
    """The deformable projector that Vision Remember v1 compares with (Table 2), after MoME (arXiv:2407.12709).

    ``mlp(q + attention(q, levels))``, q the last level pooled to the grid of tokens: MoME describes pooled features
    enhanced by deformable attention to the features that they were pooled from. One layer, the residual and LLaVA's MLP
    on top are choices of this library.

    Args:
        num_heads, num_points, feature_norm: of ``DeformableCrossAttention``. num_heads divides the last level's width.
        backend: passed on to ``vr_kernels.deformable_attention``.

    >>> DeformableProjector((32, 32), 48)([torch.randn(1, 6, 6, 32) for _ in range(2)]).tokens.shape
    torch.Size([1, 9, 48])
    """

    reads_levels = True

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        num_heads: int = 8,
        num_points: int = 4,
        feature_norm: str = "none",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window, device=device, dtype=dtype)
        self.attention = DeformableCrossAttention(
            self.input_width,
            self.feature_dims,
            num_heads,
            num_points=num_points,
            feature_norm=feature_norm,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        query = window_mean(levels[-1], grid)  # (tiles, n_h, n_w, D_L)
        return self.mlp(query + self.attention(query, levels)).flatten(1, 2)
