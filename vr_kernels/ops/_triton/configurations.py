"""Tile sizes, shipped and looked up: nothing is tuned while a program runs."""

from __future__ import annotations

from collections.abc import Sequence
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


class ProductConfiguration(NamedTuple):
    """The tile of a fused product."""

    block_n: int  # windows
    block_h: int  # heads that share what is loaded of the features
    block_d: int  # of a head's width
    block_c: int  # channels
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_H": self.block_h,
            "BLOCK_D": self.block_d,
            "BLOCK_C": self.block_c,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


class StatisticsConfiguration(NamedTuple):
    block_m: int  # feature rows
    block_c: int
    num_warps: int

    def options(self, widest_level: int) -> dict[str, int]:
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_C": min(self.block_c, padded(widest_level)),
            "num_warps": self.num_warps,
        }


# By the bytes of an element; chosen by what fits the registers, never timed. 64 windows are the rows of Hopper's matrix
# instruction. Two heads halve what is read of the features; at 64 channels their products with W, float32, stand beside
# a slot's features in the registers of eight warps, where four heads spill. float32 has no matrix instruction here, and
# its operands are in registers as well.
SCORES = {2: ProductConfiguration(64, 2, 64, 64, 8, 2), 4: ProductConfiguration(32, 2, 16, 32, 8, 2)}
# A head's whole width where it fits: what is pooled of the features is made once for each tile of it.
PROJECT = {2: ProductConfiguration(64, 2, 128, 64, 8, 2), 4: ProductConfiguration(32, 2, 64, 32, 8, 2)}
OUTER = {2: ProductConfiguration(64, 2, 128, 64, 8, 2), 4: ProductConfiguration(32, 2, 64, 32, 8, 2)}
STATISTICS = StatisticsConfiguration(16, 128, 4)


def choose_product(
    table: dict[int, ProductConfiguration], dtype: torch.dtype, head_dim: int, widths: Sequence[int]
) -> ProductConfiguration:
    configuration = table[dtype.itemsize]
    return configuration._replace(
        block_d=min(configuration.block_d, padded(head_dim)), block_c=min(configuration.block_c, padded(max(widths)))
    )
