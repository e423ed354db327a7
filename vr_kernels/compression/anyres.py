"""The order in which VisionZip hands the tokens of an AnyRes image to the language model."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["anyres_order", "pack_anyres"]


def anyres_order(
    dominant: Tensor, *, tiles: tuple[int, int], grid: tuple[int, int], contextual: int, has_cls: bool = True
) -> Tensor:
    """The order of the tokens of an image's tiles, each zipped by itself, without the base tile.

    First the dominant patches of all tiles in raster order over the stitched canvas, then the tiles' CLS rows, then
    their contextual tokens tile by tile.

    Args:
        dominant: (T, k) int64 dominant patches of the T tiles, row-major over ``tiles``: ``ZippedTokens.dominant``.
        tiles: rows and columns of the canvas in tiles; their product is T.
        grid: (H, W) patches of one tile.
        contextual: how many contextual tokens a tile has.
        has_cls: whether a tile's tokens begin with a CLS row.

    Returns:
        (T * K,) int64 rows of the tiles' tokens (T, K, D) seen as (T * K, D), each once.

    Raises:
        ValueError: dominant is no matrix of T rows.

    >>> import torch
    >>> left, right = [0, 3], [1, 2]  # of two 2x2 tiles side by side: the canvas is 2x4
    >>> anyres_order(torch.tensor([left, right]), tiles=(1, 2), grid=(2, 2), contextual=1).tolist()
    [1, 5, 2, 6, 0, 4, 3, 7]
    """
    down, across = tiles
    height, width = grid
    if dominant.dim() != 2 or dominant.shape[0] != down * across:
        raise ValueError(
            f"anyres_order: dominant has shape {tuple(dominant.shape)}; it must be ({down * across}, k), "
            f"one row for each of the {down} x {across} tiles"
        )
    first, last = int(has_cls), int(has_cls) + dominant.shape[1]
    tile = torch.arange(down * across, device=dominant.device)[:, None]  # (T, 1)
    rows = tile * (last + contextual) + torch.arange(last + contextual, device=dominant.device)  # (T, K)
    canvas_row = tile // across * height + dominant // width  # (T, k)
    canvas_column = tile % across * width + dominant % width
    raster = (canvas_row * (across * width) + canvas_column).flatten().argsort()
    return torch.cat([rows[:, first:last].flatten()[raster], rows[:, :first].flatten(), rows[:, last:].flatten()])


def pack_anyres(
    tokens: Tensor,
    dominant: Tensor,
    *,
    tiles: tuple[int, int],
    grid: tuple[int, int],
    contextual: int,
    has_cls: bool = True,
    newline: Tensor | None = None,
) -> Tensor:
    """The tokens of one AnyRes image in one sequence: the base tile's as they are, then the others' (``anyres_order``).

    No newline stands between rows, and no padding is cut off, since what is left is no grid. An image of its base tile
    alone gets one newline at its end.

    Args:
        tokens: (1 + T, K, D), ``ZippedTokens.tokens`` of the base tile and the T others, projected or not.
        dominant: (1 + T, k), ``ZippedTokens.dominant``.
        tiles, grid, contextual, has_cls: see ``anyres_order``; tiles is not looked at where there is only the base.
        newline: (D,), or None for none.

    Returns:
        ((1 + T) * K, D); (K + 1, D) for a base tile alone with a newline.

    Raises:
        ValueError: dominant of another number of tiles than tokens; a K that is not a tile's dominant and contextual
            tokens and its CLS row together.

    >>> import torch
    >>> tokens, dominant = torch.randn(5, 64, 8), torch.arange(53).expand(5, 53)
    >>> pack_anyres(tokens, dominant, tiles=(2, 2), grid=(24, 24), contextual=10).shape
    torch.Size([320, 8])
    """
    if tokens.dim() != 3 or dominant.shape[:1] != tokens.shape[:1] or dominant.dim() != 2:
        raise ValueError(
            f"pack_anyres: tokens has shape {tuple(tokens.shape)}, dominant {tuple(dominant.shape)}; they must be "
            "(1 + T, K, D) and (1 + T, k)"
        )
    expected = int(has_cls) + dominant.shape[1] + contextual
    if tokens.shape[1] != expected:
        raise ValueError(
            f"pack_anyres: a tile has {tokens.shape[1]} tokens; it must have {expected}, {'a CLS row, ' * has_cls}"
            f"{dominant.shape[1]} dominant and {contextual} contextual ones"
        )
    if tokens.shape[0] == 1:
        return tokens[0] if newline is None else torch.cat([tokens[0], newline[None].to(tokens)])
    order = anyres_order(dominant[1:], tiles=tiles, grid=grid, contextual=contextual, has_cls=has_cls)
    return torch.cat([tokens[0], tokens[1:].flatten(0, 1)[order]])
