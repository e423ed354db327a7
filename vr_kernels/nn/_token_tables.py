"""The tables of a ``VisionTokenMap`` whose tokens are cells of tiles, and the checks of what they are built from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import window_index_from_grid
from vr_kernels.ops._arguments import Arguments


def tables_of_cells(
    arguments: Arguments,
    rows: Tensor,
    cells: Tensor,
    tiles: Sequence[int],
    grid: tuple[int, int],
    feature_grid: tuple[int, int],
    sequence_shape: tuple[int, ...],
) -> dict[str, Any]:
    """The fields of the map of tokens whose cells ascend, so that an image's tokens follow each other."""
    batch, length = sequence_shape
    device, num_tiles = rows.device, sum(tiles)
    per_image = torch.tensor(tiles, dtype=torch.int64, device=device)
    image_of_tile = torch.arange(len(tiles), device=device).repeat_interleave(per_image)
    image = image_of_tile[cells // (grid[0] * grid[1])]  # (V,) ascending
    _, counts = image.unique_consecutive(return_counts=True)  # (I,): images that unpad or truncation left any token
    image_sample = rows[counts.cumsum(0) - counts] // length
    spread = rows // length != image_sample.repeat_interleave(counts)
    if spread.any():
        v = int(spread.nonzero()[0])
        raise arguments.error(
            f"image {int(image[v])} has tokens in several samples, one of them {int(rows[v]) // length}; an image "
            "stands in one sample"
        )
    slots = torch.arange(max(counts.tolist(), default=0), device=device)
    present = slots < counts[:, None]  # (I, N)
    token_rows = torch.full(present.shape, -1, dtype=torch.int64, device=device)
    token_rows[present] = rows
    windows = windows_of_grid((*feature_grid,), (*grid,), num_tiles).to(device)
    complete = len(cells) == num_tiles * grid[0] * grid[1]
    return {
        "token_rows": token_rows,
        "image_sample": image_sample,
        "window_index": windows if complete else windows[cells],
        "sequence_shape": (batch, length),
        "feature_rows": num_tiles * feature_grid[0] * feature_grid[1],
        "grid": grid,
        "feature_grid": feature_grid,
        "cells": None if complete else cells,
        "rows": rows,
    }


def windows_of_grid(feature_grid: tuple[int, int], grid: tuple[int, int], tiles: int) -> Tensor:
    """``window_index_from_grid`` on the CPU, the caller's own: a model's prompts have few kinds of images."""
    return _shared_windows(feature_grid, grid, tiles).clone()


@functools.lru_cache(maxsize=16)
def _shared_windows(feature_grid: tuple[int, int], grid: tuple[int, int], tiles: int) -> Tensor:
    with torch.inference_mode(False):  # whoever asks next may train, and autograd saves no inference tensor
        return window_index_from_grid(*feature_grid, *grid, batch=tiles, device="cpu")


def describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_sizes(arguments: Arguments, name: str, value: object) -> None:
    sizes = value if isinstance(value, (tuple, list, torch.Size)) else ()
    if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise arguments.error(f"{name} is {value!r}; it must be two integers of at least 1")


def check_sequence(arguments: Arguments, name: str, value: Tensor, form: str) -> None:
    """Refuse a table of a batch's slots that has none: a map of nothing has no sequence to stand in."""
    if value.numel() == 0:
        raise arguments.error(f"{name} has shape {tuple(value.shape)}; it must be {form} with B and T at least 1")


def checked_tiles(arguments: Arguments, tiles: Sequence[int]) -> list[int]:
    counts = [*tiles] if isinstance(tiles, Iterable) else None
    if counts is None or any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
        got = tiles if counts is None else tuple(counts)
        raise arguments.error(f"tiles is {got!r}; it must hold the number of tiles of each image, at least 1")
    return counts
