"""The cells of an AnyRes image in the order of its tokens: base tile, canvas row by row, unpadded, newlines."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NEWLINE", "anyres_cells"]

NEWLINE = -1


def anyres_cells(
    image_size: tuple[int, int], canvas: tuple[int, int] | None, grid: tuple[int, int], *, newline: bool = True
) -> Tensor:
    """Which cell of which tile stands in each slot of an image, LLaVA-NeXT's "spatial unpad".

    The base tile comes first, all of its cells in raster order. Then the canvas that the other tiles make up, row by
    row, without the rows or columns that hold nothing but padding, and a newline at the end of each row. An image of
    its base tile alone has one newline at its end. With pooled tokens the canvas is that of the pooled grid.

    Args:
        image_size: (height, width) of the original image, in pixels.
        canvas: (rows, columns) of tiles, beside the base tile; None for the base tile alone.
        grid: (n_h, n_w) tokens of a tile.
        newline: whether there are newlines.

    Returns:
        (slots,) int64: cell (tile*n_h + row)*n_w + column, tiles numbered base first, then row by row; NEWLINE (-1).

    >>> anyres_cells((10, 10), None, (2, 2)).tolist()
    [0, 1, 2, 3, -1]
    >>> anyres_cells((10, 20), (1, 2), (2, 2)).tolist()  # two tiles side by side, nothing padded
    [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    >>> anyres_cells((5, 20), (1, 2), (4, 2)).shape  # half of the canvas is padding: 2 rows of 4 cells and newlines
    torch.Size([18])
    """
    n_h, n_w = grid
    base = torch.arange(n_h * n_w)
    if canvas is None:
        return torch.cat([base, base.new_full((int(newline),), NEWLINE)])
    down, across = canvas
    tiles = torch.arange(n_h * n_w, (1 + down * across) * n_h * n_w).view(down, across, n_h, n_w)
    cells = tiles.transpose(1, 2).reshape(down * n_h, across * n_w)  # as they lie on the canvas
    rows, columns = padding_of_canvas(image_size, (cells.shape[0], cells.shape[1]))
    cells = cells[rows : cells.shape[0] - rows, columns : cells.shape[1] - columns]
    if newline:
        cells = torch.cat([cells, cells.new_full((len(cells), 1), NEWLINE)], 1)
    return torch.cat([base, cells.flatten()])


def padding_of_canvas(image_size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of cells at each end that hold nothing but padding, rounded as transformers' ``unpad_image``."""
    (height, width), (rows, columns) = image_size, canvas
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2
