"""What stands in an image's slots in the prompt: one rule for the model, which fills them, and its processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.compression.anyres_grid import anyres_cells
from vr_kernels.models.llava_vr._transformers import select_best_resolution


def canvas_of_image(
    image_size: tuple[int, int], pinpoints: Sequence[Sequence[int]], tile_size: int
) -> tuple[int, int] | None:
    """(rows, columns) of tiles beside the base tile; None without AnyRes (no pinpoints)."""
    if not pinpoints:
        return None
    height, width = select_best_resolution(image_size, [tuple(pinpoint) for pinpoint in pinpoints])
    return height // tile_size, width // tile_size


def tokens_of_image(
    image_size: tuple[int, int],
    pinpoints: Sequence[Sequence[int]],
    tile_size: int,
    grid: tuple[int, int],
    tokens_per_cell: int = 1,
) -> Tensor:
    """Which token of the image's tiles stands in each slot; -1 is a newline.

    Args:
        image_size: (height, width) of the original. pinpoints: (height, width) of the canvases that AnyRes may choose.
        tile_size: pixels along an edge. grid: (n_h, n_w) cells of a tile, of ``tokens_per_cell`` tokens each.

    Returns:
        (slots,) int64, rows of the tiles' tokens (tiles, n_h * n_w * tokens_per_cell, D) seen as one table.
    """
    canvas = canvas_of_image(image_size, pinpoints, tile_size)
    cells = anyres_cells(image_size, canvas, grid, newline=canvas is not None)
    counts = torch.where(cells < 0, 1, tokens_per_cell)
    slots = cells.repeat_interleave(counts)
    place = torch.arange(len(slots)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # 0.. in its cell
    return torch.where(slots < 0, -1, slots * tokens_per_cell + place)
