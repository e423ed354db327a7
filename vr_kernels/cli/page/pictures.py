"""Attention and saliency drawn over a tile of the image, and said in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vr_kernels.cli.page.sight import Sight

PIXELS = 480  # along a picture's longer edge
PLAIN, SALIENCY = "the image alone", "saliency"
WHITE = (255, 255, 255)


class Picture(NamedTuple):
    image: Any  # of PIL
    words: str


def views(sight: Sight) -> list[str]:
    """What can be drawn, the most telling last."""
    if sight.tiles is None:
        return []
    salient = [] if sight.saliency is None else [SALIENCY]
    return [PLAIN, *salient, *(_name_of_layer(layer) for layer in sorted(sight.attention))]


def draw(sight: Sight, view: str, tile: int, token: int) -> Picture:
    """A tile as the encoder gets it, with what ``view`` names over it.

    Args:
        view: one of ``views(sight)``. tile: counted from 0. token: a cell of the tile, counted from 1 row by row; 0 is
            all of them. Read for attention alone.
    """
    assert sight.tiles is not None
    which = f"Tile {tile + 1} of {len(sight.tiles)}" if len(sight.tiles) > 1 else "The image"
    base = _enlarged(sight.tiles[tile])
    if view == PLAIN:
        return Picture(base, f"{which} as the encoder gets it.")
    if view == SALIENCY:
        assert sight.saliency is not None
        salient = sight.saliency[tile]
        low, high = float(salient.min()), float(salient.max())
        words = f"{which}: saliency of the encoder's features, from {low:.3f} (dark) to {high:.3f} (yellow)."
        return Picture(_overlaid(base, salient, low, high), words)
    layer = next(layer for layer in sight.attention if _name_of_layer(layer) == view)
    return _draw_attention(sight, base, which, layer, tile, token)


def cell_at(sight: Sight, picture_size: tuple[int, int], x: float, y: float) -> int:
    """The token, counted from 1, whose cell has the point of the picture."""
    assert sight.token_grid is not None
    (n_h, n_w), (width, height) = sight.token_grid, picture_size
    row, column = min(int(y * n_h / height), n_h - 1), min(int(x * n_w / width), n_w - 1)
    return row * n_w + column + 1


def size_of(sight: Sight) -> tuple[int, int]:
    """(width, height) of every picture."""
    assert sight.tiles is not None
    height, width = sight.tiles.shape[1:3]
    scale = PIXELS / max(height, width)
    return round(width * scale), round(height * scale)


def _draw_attention(sight: Sight, base: Any, which: str, layer: int, tile: int, token: int) -> Picture:
    record, grid = sight.attention[layer], sight.token_grid
    assert grid is not None
    number, where = None, "all vision tokens"
    if token > 0:
        row, column = divmod(token - 1, grid[1])
        where = f"the vision token in row {row + 1}, column {column + 1}"
        number = sight.token_at(layer, tile, token - 1)
        if number is None:
            return Picture(base, f"{which}: {where} stands for padding, and is not in the prompt.")
    weights = record.over_features(number)[tile]  # (H, W)
    high = max(float(weights.max()), 2 / record.weights.shape[-1])  # twice equal shares, at least
    image = _overlaid(base, weights, 0, high)
    _draw_cells(image, grid, token)
    words = f"{which}: {_name_of_layer(layer)}, what {where} took of the features, mean over heads."
    if number is not None:
        row, column = divmod(int(weights.argmax()), weights.shape[1])
        features = int((record.vision_map.window_index[number] >= 0).sum())
        words += (
            f" Most, {float(weights.max()):.2f}, of the feature in row {row + 1}, column {column + 1}; equal shares of "
            f"its {features} features would be {1 / features:.2f}."
        )
    return Picture(image, f"{words} Yellow is {high:.2f}.")


def _name_of_layer(layer: int) -> str:
    return f"attention at layer {layer}"


def _enlarged(tile: np.ndarray) -> Any:
    from PIL import Image

    image = Image.fromarray(tile)
    scale = PIXELS / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _overlaid(base: Any, heat: Tensor, low: float, high: float) -> Any:
    """The image in grey, and over it ``heat`` (H, W) in colours, clear where it is 0."""
    from matplotlib import colormaps
    from PIL import Image

    scaled = ((heat - low) / max(high - low, 1e-12)).numpy()
    colours = colormaps["viridis"](scaled, bytes=True)  # (H, W, 4)
    colours[..., 3] = np.where(heat.numpy() != 0, 160, 0)
    over = Image.fromarray(colours, "RGBA").resize(base.size, Image.Resampling.NEAREST)
    grey = base.convert("L").convert("RGBA")
    return Image.alpha_composite(grey, over).convert("RGB")


def _draw_cells(image: Any, grid: tuple[int, int], token: int) -> None:
    """Thin lines between the tokens' cells, a frame around the chosen one."""
    from PIL import ImageDraw

    pen, (n_h, n_w) = ImageDraw.Draw(image), grid
    rows = [round(row * image.height / n_h) for row in range(n_h + 1)]
    columns = [round(column * image.width / n_w) for column in range(n_w + 1)]
    for y in rows[1:-1]:
        pen.line([(0, y), (image.width, y)], WHITE)
    for x in columns[1:-1]:
        pen.line([(x, 0), (x, image.height)], WHITE)
    if token > 0:
        row, column = divmod(token - 1, n_w)
        box = (columns[column], rows[row], columns[column + 1] - 1, rows[row + 1] - 1)
        pen.rectangle(box, outline=WHITE, width=4)
