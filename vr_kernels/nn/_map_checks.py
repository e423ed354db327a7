"""The checks of a ``VisionTokenMap``: its tables, their shapes, and on the CPU their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vr_kernels.nn._token_tables import check_sizes, windows_of_grid
from vr_kernels.ops._arguments import Arguments, check_index_values, refuse_outside, signatures

if TYPE_CHECKING:
    from vr_kernels.nn.vision_token_map import VisionTokenMap

ARGUMENTS = Arguments("VisionTokenMap")
OPTIONAL = ("cells", "rows", "newline_rows")


def check_tables(tables: VisionTokenMap) -> None:
    """Each is an integer tensor, and all are on one device."""
    names = ("token_rows", "image_sample", "window_index", *OPTIONAL)
    values = [getattr(tables, name) for name in names]
    for name, value, got in zip(names, values, signatures(*values), strict=True):
        if value is None and name in OPTIONAL:
            continue
        table = ARGUMENTS.tensor(name, got)
        allowed = (torch.int32, torch.int64) if name == "window_index" else (torch.int64,)
        if table.dtype not in allowed:
            raise TypeError(f"VisionTokenMap: {name} is {table.dtype}; it must be {' or '.join(map(str, allowed))}")
        if table.device != tables.token_rows.device:
            raise ARGUMENTS.error(f"{name} is on {table.device}, token_rows is on {tables.token_rows.device}")
    ARGUMENTS.rank("token_rows", ARGUMENTS.tensor("token_rows", signatures(tables.token_rows)[0]), {2: "(I, N)"})


def check_shapes(tables: VisionTokenMap) -> None:
    images, tokens = len(tables.token_rows), len(tables.rows)
    if tables.image_sample.shape != (images,):
        raise ARGUMENTS.error(
            f"image_sample has shape {tuple(tables.image_sample.shape)}; it must be (I,) = {(images,)}"
        )
    newlines = tables.newline_rows
    if newlines is not None and (newlines.dim() != 2 or len(newlines) != images):
        raise ARGUMENTS.error(f"newline_rows has shape {tuple(newlines.shape)}; it must be (I, M) with I = {images}")
    check_sizes(ARGUMENTS, "sequence_shape", tables.sequence_shape)
    if isinstance(tables.feature_rows, bool) or not isinstance(tables.feature_rows, int) or tables.feature_rows < 0:
        raise ARGUMENTS.error(f"feature_rows is {tables.feature_rows!r}; it must be an integer of at least 0")
    _check_grid(tables)
    if tables.window_index.dim() != 2 or len(tables.window_index) != tokens or tables.window_index.shape[1] == 0:
        raise ARGUMENTS.error(
            f"window_index has shape {tuple(tables.window_index.shape)}; it must be (V, K) with V = {tokens}, the "
            "tokens in token_rows, and K at least 1"
        )
    if tables.cells is not None and tables.cells.shape != tables.rows.shape:
        raise ARGUMENTS.error(f"cells has shape {tuple(tables.cells.shape)}; it must be (V,) = ({tokens},)")


def check_values(tables: VisionTokenMap) -> None:
    """Reads the tables: for those on the CPU."""
    if not torch.equal(tables.rows, tables.token_rows[tables.token_rows >= 0]):
        raise ARGUMENTS.error("rows is not token_rows without its padding; leave it out")
    _check_rows(tables, "token_rows", tables.token_rows)
    if len(tables.rows.unique()) != len(tables.rows):
        raise ARGUMENTS.error("token_rows names a row twice; each vision token stands in one place")
    if tables.newline_rows is not None:
        _check_rows(tables, "newline_rows", tables.newline_rows)
        rows = torch.cat([tables.rows, tables.newline_rows[tables.newline_rows >= 0]])
        if len(rows.unique()) != len(rows):
            raise ARGUMENTS.error("newline_rows names a row twice, or one of token_rows; each stands in one place")
    check_index_values(ARGUMENTS.operator, tables.window_index, tables.feature_rows)
    if tables.grid is None or tables.feature_grid is None:
        return
    cells = tables.num_tiles * tables.grid[0] * tables.grid[1]
    if tables.cells is not None:
        if ((tables.cells < 0) | (tables.cells >= cells)).any() or len(tables.cells.unique()) != len(tables.cells):
            raise ARGUMENTS.error(f"cells must be different cells in [0, {cells})")
    elif len(tables.rows) != cells:
        raise ARGUMENTS.error(
            f"token_rows holds {len(tables.rows)} tokens and the grid has {cells} cells; give the cells of the tokens"
        )
    windows = windows_of_grid((*tables.feature_grid,), (*tables.grid,), tables.num_tiles)
    if not torch.equal(tables.window_index, windows if tables.cells is None else windows[tables.cells]):
        raise ARGUMENTS.error("window_index is not that of the grid; give no grid with windows of your own")


def _check_grid(tables: VisionTokenMap) -> None:
    if (tables.grid is None) != (tables.feature_grid is None):
        raise ARGUMENTS.error(
            f"grid is {tables.grid} and feature_grid is {tables.feature_grid}; give both of them, or neither"
        )
    if tables.grid is None or tables.feature_grid is None:
        if tables.cells is not None:
            raise ARGUMENTS.error("cells is given and grid is None; cells are numbered in a grid")
        return
    check_sizes(ARGUMENTS, "grid", tables.grid)
    check_sizes(ARGUMENTS, "feature_grid", tables.feature_grid)
    if tables.feature_rows % (tables.feature_grid[0] * tables.feature_grid[1]) != 0:
        raise ARGUMENTS.error(
            f"feature_rows is {tables.feature_rows}; it must be whole tiles of feature_grid {tables.feature_grid}"
        )


def _check_rows(tables: VisionTokenMap, name: str, table: Tensor) -> None:
    """Each row of the table (I, N) is one of its image's sample, or padding."""
    batch, length = tables.sequence_shape
    allowed = f"-1 (padding) or a row b*T + t in [0, {batch * length})"
    refuse_outside(ARGUMENTS.operator, name, table, -1, batch * length, allowed)
    elsewhere = (table >= 0) & (table // length != tables.image_sample[:, None])
    if elsewhere.any():
        i, n = elsewhere.nonzero()[0].tolist()
        raise ARGUMENTS.error(
            f"{name}[{i}, {n}] is in sample {int(table[i, n]) // length}, image_sample[{i}] is "
            f"{int(tables.image_sample[i])}; an image stands in one sample"
        )
