"""``VisionTokenMap``: where the vision tokens of a batch stand, and which encoder features each of them reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vr_kernels.nn._token_tables import check_sizes, checked_tiles, describe, tables_of_cells, windows_of_grid
from vr_kernels.ops._arguments import Arguments, check_index_values, signatures


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
        arguments = Arguments("VisionTokenMap")
        optional = ("cells", "rows", "newline_rows")
        tables = ("token_rows", "image_sample", "window_index", *optional)
        values = [getattr(self, name) for name in tables]
        for name, value, got in zip(tables, values, signatures(*values), strict=True):
            if value is None and name in optional:
                continue
            table = arguments.tensor(name, got)
            allowed = (torch.int32, torch.int64) if name == "window_index" else (torch.int64,)
            if table.dtype not in allowed:
                raise TypeError(f"VisionTokenMap: {name} is {table.dtype}; it must be {' or '.join(map(str, allowed))}")
            if table.device != self.token_rows.device:
                raise arguments.error(f"{name} is on {table.device}, token_rows is on {self.token_rows.device}")
        arguments.rank("token_rows", arguments.tensor("token_rows", signatures(self.token_rows)[0]), {2: "(I, N)"})
        if self.image_sample.shape != self.token_rows.shape[:1]:
            raise arguments.error(
                f"image_sample has shape {tuple(self.image_sample.shape)}; it must be (I,) = "
                f"{tuple(self.token_rows.shape[:1])}"
            )
        if self.newline_rows is not None and (
            self.newline_rows.dim() != 2 or len(self.newline_rows) != len(self.token_rows)
        ):
            raise arguments.error(
                f"newline_rows has shape {tuple(self.newline_rows.shape)}; it must be (I, M) with I = "
                f"{len(self.token_rows)}"
            )
        check_sizes(arguments, "sequence_shape", self.sequence_shape)
        if isinstance(self.feature_rows, bool) or not isinstance(self.feature_rows, int) or self.feature_rows < 0:
            raise arguments.error(f"feature_rows is {self.feature_rows!r}; it must be an integer of at least 0")
        self._check_grid(arguments)
        if self.rows is None:
            object.__setattr__(self, "rows", self.token_rows[self.token_rows >= 0])
        tokens = len(self.rows)
        if self.window_index.dim() != 2 or len(self.window_index) != tokens or self.window_index.shape[1] == 0:
            raise arguments.error(
                f"window_index has shape {tuple(self.window_index.shape)}; it must be (V, K) with V = {tokens}, the "
                "tokens in token_rows, and K at least 1"
            )
        if self.cells is not None and self.cells.shape != self.rows.shape:
            raise arguments.error(f"cells has shape {tuple(self.cells.shape)}; it must be (V,) = ({tokens},)")
        if self.token_rows.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values(arguments)

    def _check_grid(self, arguments: Arguments) -> None:
        if (self.grid is None) != (self.feature_grid is None):
            raise arguments.error(
                f"grid is {self.grid} and feature_grid is {self.feature_grid}; give both of them, or neither"
            )
        if self.grid is None or self.feature_grid is None:
            if self.cells is not None:
                raise arguments.error("cells is given and grid is None; cells are numbered in a grid")
            return
        check_sizes(arguments, "grid", self.grid)
        check_sizes(arguments, "feature_grid", self.feature_grid)
        if self.feature_rows % (self.feature_grid[0] * self.feature_grid[1]) != 0:
            raise arguments.error(
                f"feature_rows is {self.feature_rows}; it must be whole tiles of feature_grid {self.feature_grid}"
            )

    def _check_values(self, arguments: Arguments) -> None:
        if not torch.equal(self.rows, self.token_rows[self.token_rows >= 0]):
            raise arguments.error("rows is not token_rows without its padding; leave it out")
        self._check_rows(arguments, "token_rows", self.token_rows)
        if len(self.rows.unique()) != len(self.rows):
            raise arguments.error("token_rows names a row twice; each vision token stands in one place")
        if self.newline_rows is not None:
            self._check_rows(arguments, "newline_rows", self.newline_rows)
            object.__setattr__(self, "newlines_padded", bool((self.newline_rows < 0).any()))
            rows = torch.cat([self.rows, self.newline_rows[self.newline_rows >= 0]])
            if len(rows.unique()) != len(rows):
                raise arguments.error("newline_rows names a row twice, or one of token_rows; each stands in one place")
        check_index_values(arguments.operator, self.window_index, self.feature_rows)
        cells = self.num_tiles * self.grid[0] * self.grid[1] if self.grid is not None else 0
        if self.cells is not None:
            if ((self.cells < 0) | (self.cells >= cells)).any() or len(self.cells.unique()) != len(self.cells):
                raise arguments.error(f"cells must be different cells in [0, {cells})")
        elif self.grid is not None and len(self.rows) != cells:
            raise arguments.error(
                f"token_rows holds {len(self.rows)} tokens and the grid has {cells} cells; give the cells of the tokens"
            )
        if self.grid is not None and self.feature_grid is not None:
            windows = windows_of_grid((*self.feature_grid,), (*self.grid,), self.num_tiles)
            if not torch.equal(self.window_index, windows if self.cells is None else windows[self.cells]):
                raise arguments.error("window_index is not that of the grid; give no grid with windows of your own")

    def _check_rows(self, arguments: Arguments, name: str, table: Tensor) -> None:
        """Each row of the table (I, N) is one of its image's sample, or padding."""
        batch, length = self.sequence_shape
        outside = (table < -1) | (table >= batch * length)
        if outside.any():
            i, n = outside.nonzero()[0].tolist()
            raise arguments.error(
                f"{name}[{i}, {n}] is {int(table[i, n])}; it must be -1 (padding) or a row b*T + t in "
                f"[0, {batch * length})"
            )
        elsewhere = (table >= 0) & (table // length != self.image_sample[:, None])
        if elsewhere.any():
            i, n = elsewhere.nonzero()[0].tolist()
            raise arguments.error(
                f"{name}[{i}, {n}] is in sample {int(table[i, n]) // length}, image_sample[{i}] is "
                f"{int(self.image_sample[i])}; an image stands in one sample"
            )

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
            ValueError: a mask of another shape or dtype; samples whose slots are not filled by whole images.

        >>> mask = torch.tensor([[True] * 4 + [False], [True] * 2 + [False] * 3])  # two images, then one
        >>> VisionTokenMap.from_grid(mask, grid=(1, 2), feature_grid=(2, 4)).image_sample
        tensor([0, 0, 1])
        """
        arguments = Arguments("VisionTokenMap.from_grid")
        if not isinstance(image_mask, Tensor) or image_mask.dtype != torch.bool or image_mask.dim() != 2:
            raise arguments.error(f"image_mask is {describe(image_mask)}; it must be a (B, T) tensor of bool")
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
            ValueError: slots of another shape or dtype, outside the grid, naming a cell twice, or spreading an image
                over several samples.

        >>> slots = torch.tensor([[[-1, -1, -1], [0, 0, 0], [0, 0, 1], [-1, -1, -1]]])  # text, two tokens, text
        >>> VisionTokenMap.from_slots(slots, grid=(2, 2), feature_grid=(4, 4), tiles=[1]).cells
        tensor([0, 1])
        """
        arguments = Arguments("VisionTokenMap.from_slots")
        if not isinstance(slots, Tensor) or slots.dtype != torch.int64 or slots.dim() != 3 or slots.shape[2] != 3:
            raise arguments.error(f"slots is {describe(slots)}; it must be a (B, T, 3) tensor of int64")
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
