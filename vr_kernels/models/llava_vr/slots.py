"""What stands in an image's slots in the prompt: one rule for the model, which fills them, and its processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.compression.anyres_grid import anyres_cells
from vr_kernels.compression.projectors import Projector
from vr_kernels.models.llava_vr._transformers import select_best_resolution
from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig


def canvas_of_image(
    image_size: tuple[int, int], pinpoints: Sequence[Sequence[int]], tile_size: int
) -> tuple[int, int] | None:
    """(rows, columns) of tiles beside the base tile; None without AnyRes (no pinpoints)."""
    if not pinpoints:
        return None
    height, width = select_best_resolution(image_size, [tuple(pinpoint) for pinpoint in pinpoints])
    return height // tile_size, width // tile_size


def slots_of_images(
    config: LlavaVRConfig, projector: Projector, images: int, image_sizes: Tensor | None
) -> tuple[list[Tensor], list[int]]:
    """What stands in each image's slots (``tokens_of_image``), and how many tiles each image has.

    Args:
        image_sizes: (images, 2), height and width of the originals; None where there is no AnyRes.

    Raises:
        ValueError: AnyRes without sizes.
    """
    pinpoints, tile_size = config.image_grid_pinpoints or [], config.vision_config.image_size
    sizes = [(tile_size, tile_size)] * images  # any will do for one tile
    if pinpoints:
        if image_sizes is None:
            raise ValueError("LlavaVR: image_sizes is None; with AnyRes it must hold each image's height and width")
        sizes = [(int(height), int(width)) for height, width in torch.as_tensor(image_sizes).tolist()]
    grid = projector.output_grid(*config.feature_grid)
    slots = [tokens_of_image(size, pinpoints, tile_size, grid, projector.tokens_per_cell) for size in sizes]
    canvases = [canvas_of_image(size, pinpoints, tile_size) for size in sizes]
    return slots, [1 if canvas is None else 1 + canvas[0] * canvas[1] for canvas in canvases]


def stack_tiles(name: str, pixel_values: Tensor, tiles: Sequence[int]) -> Tensor:
    """(images, most tiles, 3, H, W), padded, or (tiles, 3, H, W) -> (tiles, 3, H, W), image by image.

    Raises:
        ValueError: other tiles than the images have by their sizes.
    """
    if pixel_values.dim() == 5 and len(pixel_values) == len(tiles) and pixel_values.shape[1] >= max(tiles, default=0):
        return torch.cat([image[:count] for image, count in zip(pixel_values, tiles, strict=True)])
    if pixel_values.dim() == 4 and len(pixel_values) == sum(tiles):
        return pixel_values
    raise ValueError(
        f"{name}: pixel_values has shape {tuple(pixel_values.shape)}; it must be (images, tiles, 3, H, W) or "
        f"(tiles, 3, H, W), and by their sizes the {len(tiles)} images have {', '.join(map(str, tiles))} tiles"
    )


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
