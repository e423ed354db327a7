"""``VisionTokenMap``: where the vision tokens of a batch stand, and which encoder features each of them reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vr_kernels.nn._map_checks import check_shapes, check_tables, check_values
from vr_kernels.nn._token_tables import check_sequence, check_sizes, checked_tiles, describe, tables_of_cells
from vr_kernels.ops._arguments import Arguments, signatures


@dataclass(frozen=True, eq=False)
class VisionTokenMap:
    """Where the V vision tokens of a (B, T) batch stand, image by image, and which feature rows each reads.

    Left padding, several images a sample, unpad, newlines and samples without an image are all in these tables, so
    that the layers see none of them. Build one a batch, outside compiled regions (on CUDA it synchronises; build it on
    the CPU and move it with ``to``), with ``from_grid`` or ``from_slots``; or give the tables of any other geometry.

    A vision token's number v counts the entries of ``token_rows`` that are not -1, in row-major order.

    Args:
        token_rows: (I, N) int64, row b*T + t of each vision token of each image, -1 = padding.
        image_sample: (I,) int64, the batch row b that each image stands in.
        window_index: (V, K) int32 or int64, the rows of the feature table that each token reads, -1 = absent. With a
            grid it must be what ``window_index_from_grid`` says.
        sequence_shape: (B, T) of the hidden states.
        feature_rows: M, rows of the feature table.
        grid: (n_h, n_w) tokens of a tile, where tiles have such a grid. The feature table is then (tiles, H, W) with
            feature_grid: (H, W).
        cells: (V,) int64, cell (tile*n_h + row)*n_w + column of each token; None where the tokens are all the cells in
            order, so that a table of features is read as a grid.
        rows: (V,) int64, token_rows without its padding; None computes it.
        newline_rows: (I, M) int64, row b*T + t of each image's newline tokens, -1 = padding; they are keys to layers
            that ask for them, and no vision tokens. None: not known.
        newlines_padded: whether newline_rows holds padding: looked at on the CPU, elsewhere as given, None unknown.
        text_in_every_sample: whether every image stands in a sample with text; ``with_text`` sets it.

    The last two, like ``padded``, are known to the host, so that a layer on a GPU need not wait for an answer.

    Raises:
        ValueError: shapes that do not fit; on the CPU also rows out of range, named twice or in another sample.
        TypeError: a table that is no integer tensor.

    >>> image_mask = torch.tensor([[False, True, True, True, True, False]])
    >>> VisionTokenMap.from_grid(image_mask, grid=(2, 2), feature_grid=(4, 4)).token_rows
    tensor([[1, 2, 3, 4]])
    """

    token_rows: Tensor
    image_sample: Tensor
    window_index: Tensor
    sequence_shape: tuple[int, int]
    feature_rows: int
    grid: tuple[int, int] | None = None
    feature_grid: tuple[int, int] | None = None
    cells: Tensor | None = None
    rows: Tensor = None  # type: ignore[assignment]  # a field, so that dataclasses.replace keeps it
    newline_rows: Tensor | None = None
    newlines_padded: bool | None = None
    text_in_every_sample: bool = False

    def __post_init__(self) -> None:
        check_tables(self)
        if self.rows is None:
            object.__setattr__(self, "rows", self.token_rows[self.token_rows >= 0])
        check_shapes(self)
        if self.token_rows.device.type == "cpu" and not torch.compiler.is_compiling():
            check_values(self)
            if self.newline_rows is not None:
                object.__setattr__(self, "newlines_padded", bool((self.newline_rows < 0).any()))

    @property
    def padded(self) -> bool:
        """Whether token_rows holds padding; a fact of shapes."""
        return self.token_rows.numel() != len(self.rows)

    @property
    def num_tiles(self) -> int:
        """Tiles of the feature table; 0 without a grid."""
        return 0 if self.feature_grid is None else self.feature_rows // (self.feature_grid[0] * self.feature_grid[1])

    @property
    def ragged(self) -> bool:
        """Whether the token grid does not divide the feature grid, so that windows differ in size or overlap."""
        if self.grid is None or self.feature_grid is None:
            return False
        return any(size % n != 0 for size, n in zip(self.feature_grid, self.grid, strict=True))

    def with_text(self, text_mask: Tensor) -> VisionTokenMap:
        """The same map, told of the (B, T) bool mask of the prompt's text that the layers will get.

        Without it a layer on a GPU must take any sample for one without text. Call it on the CPU, before ``to``.

        Raises:
            ValueError, TypeError: a mask of another shape, dtype or device.
        """
        arguments, shape = Arguments("VisionTokenMap.with_text", query="the map"), tuple(self.sequence_shape)
        like = arguments.tensor("token_rows", signatures(self.token_rows)[0])
        (got,) = signatures(text_mask)
        arguments.tensor("text_mask", got)
        arguments.mask("text_mask", got, like, shape)
        return dataclasses.replace(self, text_in_every_sample=bool(text_mask.any(1)[self.image_sample].all()))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> VisionTokenMap:
        """The same map with its tables on ``device``; itself where they are there already."""
        if torch.device(device) == self.token_rows.device:
            return self
        tables = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tables)  # type: ignore[arg-type]

    @classmethod
    def from_grid(
        cls,
        image_mask: Tensor,
        *,
        grid: tuple[int, int],
        feature_grid: tuple[int, int],
        tiles: Sequence[int] | None = None,
    ) -> VisionTokenMap:
        """Every tile gives grid = (n_h, n_w) tokens, in raster order, tile after tile, at the True slots of a mask.

        Args:
            image_mask: (B, T) bool, the slots of vision tokens (and of nothing else: no newline, no CLS).
            grid: (n_h, n_w). feature_grid: (H, W) of every tile; windows are ragged where n_h, n_w do not divide it.
            tiles: how many tiles each image has, in the order of the batch; None is one an image. The feature table
                holds the tiles in this order.

        Raises:
            ValueError: a mask of another shape or dtype, or of no sample or slot; samples whose slots are not filled
                by whole images.

        >>> mask = torch.tensor([[True] * 4 + [False], [True] * 2 + [False] * 3])  # two images, then one
        >>> VisionTokenMap.from_grid(mask, grid=(1, 2), feature_grid=(2, 4)).image_sample
        tensor([0, 0, 1])
        """
        arguments = Arguments("VisionTokenMap.from_grid")
        if not isinstance(image_mask, Tensor) or image_mask.dtype != torch.bool or image_mask.dim() != 2:
            raise arguments.error(f"image_mask is {describe(image_mask)}; it must be a (B, T) tensor of bool")
        check_sequence(arguments, "image_mask", image_mask, "(B, T)")
        check_sizes(arguments, "grid", grid)
        check_sizes(arguments, "feature_grid", feature_grid)
        per_tile, counts = grid[0] * grid[1], image_mask.sum(1).tolist()
        for sample, count in enumerate(counts):
            if count % per_tile != 0:
                raise arguments.error(
                    f"sample {sample} has {count} image tokens; it must have a multiple of {per_tile}, the tokens of a "
                    f"tile of grid {grid}"
                )
        tiles = [1] * (sum(counts) // per_tile) if tiles is None else checked_tiles(arguments, tiles)
        if sum(tiles) * per_tile != sum(counts):
            raise arguments.error(
                f"tiles is {tuple(tiles)}, {sum(tiles) * per_tile} tokens of {per_tile} a tile; image_mask has "
                f"{sum(counts)}"
            )
        rows = image_mask.flatten().nonzero().squeeze(1)  # (V,)
        cells = torch.arange(len(rows), device=rows.device)
        return cls(**tables_of_cells(arguments, rows, cells, tiles, grid, feature_grid, tuple(image_mask.shape)))

    @classmethod
    def from_slots(
        cls,
        slots: Tensor,
        *,
        grid: tuple[int, int],
        feature_grid: tuple[int, int],
        tiles: Sequence[int],
    ) -> VisionTokenMap:
        """Every slot of the sequence says which cell of which tile stands there: AnyRes, stitched, unpadded.

        Args:
            slots: (B, T, 3) int64, (tile, row, column) of a vision token, (-1, -1, -1) for all others: text, padding,
                newline, CLS. Tiles are numbered through the batch, as the feature table holds them. Cells that no slot
                names (removed by unpad) are read by nobody.
            grid: (n_h, n_w) cells of a tile. feature_grid: (H, W) of every tile.
            tiles: how many tiles each image has, in the order of their numbers.

        Raises:
            ValueError: slots of another shape or dtype, or of no sample or slot; slots outside the grid, naming a cell
                twice, or spreading an image over several samples.

        >>> slots = torch.tensor([[[-1, -1, -1], [0, 0, 0], [0, 0, 1], [-1, -1, -1]]])  # text, two tokens, text
        >>> VisionTokenMap.from_slots(slots, grid=(2, 2), feature_grid=(4, 4), tiles=[1]).cells
        tensor([0, 1])
        """
        arguments = Arguments("VisionTokenMap.from_slots")
        if not isinstance(slots, Tensor) or slots.dtype != torch.int64 or slots.dim() != 3 or slots.shape[2] != 3:
            raise arguments.error(f"slots is {describe(slots)}; it must be a (B, T, 3) tensor of int64")
        check_sequence(arguments, "slots", slots, "(B, T, 3)")
        check_sizes(arguments, "grid", grid)
        check_sizes(arguments, "feature_grid", feature_grid)
        tiles = checked_tiles(arguments, tiles)
        limits = torch.tensor([sum(tiles), *grid], device=slots.device)
        vision = ((slots >= 0) & (slots < limits)).all(-1)  # (B, T)
        fault = ~vision & (slots != -1).any(-1)
        if fault.any():
            b, t = fault.nonzero()[0].tolist()
            raise arguments.error(
                f"slots[{b}, {t}] is {tuple(slots[b, t].tolist())}; it must be (-1, -1, -1) or a (tile, row, column) "
                f"below {tuple(limits.tolist())}"
            )
        rows = vision.flatten().nonzero().squeeze(1)  # (V,)
        tile, row, column = slots[vision].unbind(1)
        cells, order = ((tile * grid[0] + row) * grid[1] + column).sort()
        twice = (cells[1:] == cells[:-1]).nonzero()
        if len(twice) > 0:
            first, second = sorted(rows[order][int(twice[0]) : int(twice[0]) + 2].tolist())
            raise arguments.error(
                f"slots name one cell twice, at sequence rows {first} and {second} (b*T + t); each cell stands once"
            )
        return cls(**tables_of_cells(arguments, rows[order], cells, tiles, grid, feature_grid, tuple(slots.shape[:2])))
