"""``STFProjector``: LLaVA-STF's two fusions, of levels and of neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.compression.projectors.base import DividingProjector
from vr_kernels.nn import MultiBlockTokenFusion, SpatialTokenFusion, fusion_levels
from vr_kernels.ops._arguments import Arguments


class STFProjector(DividingProjector):
    """LLaVA-STF: ``SpatialTokenFusion(MultiBlockTokenFusion(levels))`` (§3.3, §3.4).

    Args:
        feature_dims: one width a level, in the order of ``vr_kernels.nn.fusion_levels``.
        window: (k, k). tokens: E, how many tokens a window becomes.
        variant: "paper" or "code", of both modules. backend: passed on to ``vr_kernels.patch_linear``.

    Raises:
        ValueError: a window that is not square.

    >>> projected = STFProjector((16,) * 8, 48, tokens=2)([torch.randn(1, 4, 4, 16) for _ in range(8)])
    >>> projected.tokens.shape, projected.grid, projected.window_index.shape
    (torch.Size([1, 8, 48]), (2, 2), torch.Size([8, 4]))
    """

    reads_levels = True

    def __init__(
        self,
        feature_dims: int | Sequence[int],
        hidden_size: int,
        window: tuple[int, int] = (2, 2),
        *,
        tokens: int = 1,
        variant: str = "paper",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(feature_dims, hidden_size, window)
        if self.window[0] != self.window[1]:
            raise Arguments(type(self).__name__).error(f"window is {self.window}; STF's windows are square")
        self.mbtf = MultiBlockTokenFusion(
            self.feature_dims, variant=variant, backend=backend, device=device, dtype=dtype
        )
        self.stf = SpatialTokenFusion(
            self.mbtf.out_dim,
            hidden_size,
            kernel_size=self.window[0],
            tokens=tokens,
            variant=variant,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.tokens_per_cell = tokens

    @classmethod
    def default_levels(cls, depth: int, *, variant: str = "paper", **options: Any) -> tuple[int, ...]:
        """``fusion_levels`` of eight levels, or of the largest number below that divides the depth."""
        count = max(count for count in range(1, 9) if depth % count == 0)
        return fusion_levels(depth, count, variant=variant)

    def project(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        return self.stf(self.mbtf(levels))  # type: ignore[no-any-return]
