"""What the cases of windowed attention share: the tiles of a batch of images, each cut into windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vr_kernels.cli.measure.bench import Case

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class TilesCase(Case):
    """Every token of every tile reads its window of the grid."""

    window: int
    grid: int = 24
    tiles: int = 5  # AnyRes: a base tile and four more, of each of the batch's images
    heads: int = 24

    @property
    def images(self) -> int:
        return self.batch * self.tiles

    @property
    def side(self) -> int:
        """Windows along an edge of a tile."""
        return self.grid // self.window

    @property
    def queries(self) -> int:
        return self.images * self.side**2

    def small(self) -> Self:
        """Four windows: fewer queries than any kernel's block."""
        return replace(self, grid=2 * self.window, tiles=1, batch=1)

    def quick(self) -> Self:
        return replace(self, tiles=1)
