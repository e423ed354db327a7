"""Tile sizes, shipped and looked up: nothing is tuned while a program runs."""

from __future__ import annotations

from typing import NamedTuple

import torch

SMALLEST_TILE = 16  # of any side of a tl.dot
LARGEST_WINDOW = 64  # slots


class Configuration(NamedTuple):
    block_c: int  # channels that one step of a loop takes
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        return {"BLOCK_C": self.block_c, "num_warps": self.num_warps, "num_stages": self.num_stages}


# By the bytes of a head row's element and the padded slots of a window. Heads are tiled by SMALLEST_TILE: a block of
# local cross-attention has no more, and plain attention has one head a kv head. Chosen by occupancy, never timed.
ATTENTION = {
    (2, 16): Configuration(128, 4, 3),
    (2, 32): Configuration(128, 4, 3),
    (2, 64): Configuration(64, 8, 3),
    (4, 16): Configuration(64, 4, 2),
    (4, 32): Configuration(32, 4, 2),
    (4, 64): Configuration(16, 4, 1),
}
FEATURE_GRADIENT = {
    (2, 16): Configuration(128, 4, 1),
    (2, 32): Configuration(128, 4, 1),
    (2, 64): Configuration(128, 4, 1),
    (4, 16): Configuration(64, 4, 1),
    (4, 32): Configuration(64, 4, 1),
    (4, 64): Configuration(64, 4, 1),
}


def padded(size: int) -> int:
    """The tile that holds ``size``: a power of two that tl.dot takes."""
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


def choose(
    table: dict[tuple[int, int], Configuration], dtype: torch.dtype, slots: int, widest_level: int
) -> Configuration:
    configuration = table[dtype.itemsize, padded(slots)]
    return configuration._replace(block_c=min(configuration.block_c, padded(widest_level)))
