"""patch_linear by Triton: one kernel forward; backward, patches moved by torch around its GEMMs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops.token_fusion.patches import Patches


class Level(NamedTuple):
    """A feature level as the kernel takes it: strides count elements."""

    pointer: Tensor
    image: int
    row: int
    column: int
    channel: int


class Tile(NamedTuple):
    """Patches, outputs and columns that one step multiplies."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# By the bytes of an element: what fits the smallest shared memory with its pipeline, never timed.
TILES = {2: Tile(64, 128, 64, 8, 3), 4: Tile(64, 64, 32, 4, 2)}


class TritonPatches:
    """``Engine`` by Triton, on the current stream of the tensors' device."""

    def forward(
        self, features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, kernel_size: int, activation: str | None
    ) -> Tensor:
        from vr_kernels.ops.token_fusion.triton_kernels import patch_linear_forward

        patches, width = Patches.of(features[0].shape[:-1], kernel_size), weight.shape[0]
        out = weight.new_empty(*patches.shape, width)
        if out.numel() == 0:
            return out
        tile = TILES[weight.dtype.itemsize]
        programs = -(-patches.count // tile.block_m) * -(-width // tile.block_n)
        with torch.cuda.device_of(weight):
            patch_linear_forward[(programs,)](
                tuple(Level(level, *level.stride()) for level in features),
                weight.contiguous(),
                None if bias is None else bias.contiguous(),
                out,
                patches.count,
                patches.down,
                patches.across,
                width,
                WIDTHS=tuple(level.shape[-1] for level in features),
                KERNEL=kernel_size,
                GELU=activation == "gelu",
                BLOCK_M=tile.block_m,
                BLOCK_N=tile.block_n,
                BLOCK_K=tile.block_k,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
            )
        return out

    def gather(self, levels: Sequence[Tensor], patches: Patches, first: int, rows: Tensor) -> None:
        start = 0
        for level in levels:
            places = _places(level, patches)  # (B, n_h, n_w, D, k, k)
            columns = level.shape[-1] * patches.area
            part = places.flatten(3).flatten(0, 2)[first : first + rows.shape[0]]
            rows[:, start : start + columns] = part
            start += columns

    def scatter(self, rows: Tensor, levels: Sequence[Tensor], patches: Patches) -> None:
        start = 0
        for level in levels:
            places = _places(level, patches)
            columns = level.shape[-1] * patches.area
            places.copy_(rows[:, start : start + columns].reshape(places.shape))
            start += columns


def _places(level: Tensor, patches: Patches) -> Tensor:
    """(B, H, W, D) -> (B, n_h, n_w, D, k, k), a view."""
    k = patches.kernel
    windows: Tensor = level.unflatten(2, (-1, k)).unflatten(1, (-1, k))  # (B, n_h, k, n_w, k, D)
    return windows.permute(0, 1, 3, 5, 2, 4)
