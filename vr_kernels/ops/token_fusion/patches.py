"""Which features each output reads, and when the features already are the matrix that a GEMM wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vr_kernels.ops._dispatch import Request


@dataclass(frozen=True)
class Patches:
    """batch x down x across patches of kernel x kernel features, numbered row-major."""

    batch: int
    down: int
    across: int
    kernel: int

    @classmethod
    def of(cls, grid: Sequence[int], kernel: int) -> Patches:
        """The patches of a (B, H, W) grid."""
        batch, height, width = grid
        return cls(batch, height // kernel, width // kernel, kernel)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.down, self.across

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def area(self) -> int:
        """Features in a patch."""
        return self.kernel**2


@dataclass(frozen=True, kw_only=True)
class PatchRequest(Request):
    """A call of patch_linear, as its backends see it."""

    patches: Patches
    channels: int  # C, of all levels
    out_channels: int
    recorded: bool = False  # whether a gradient is to come

    @property
    def multiplications(self) -> int:
        """Of the product of the patch matrix with the weight."""
        return self.patches.count * self.patches.area * self.channels * self.out_channels


def typical_request(device: str, dtype: torch.dtype) -> PatchRequest:
    """The first layer of MBTF on LLaVA-1.5: 24x24 features of eight levels of 1024 channels."""
    return PatchRequest(device, dtype, patches=Patches(1, 24, 24, 1), channels=8192, out_channels=4096)


def side_by_side(levels: Sequence[Tensor]) -> Tensor | None:
    """The concatenation of levels that lie beside each other in one buffer, as a view of it; None where they do not.

    ``capture_features(..., joint=True)`` writes them so. Below autograd only: the view is of the first level.
    """
    first, width = levels[0], 0
    for level in levels:
        beside = level.data_ptr() == first.data_ptr() + width * first.element_size()
        if level.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or not beside:
            return None
        if level.stride() != first.stride() or level.stride(-1) != 1:
            return None
        width += level.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride())


def as_matrix(features: Tensor, patches: Patches) -> Tensor | None:
    """(B, H, W, D) -> (B*H*W, D) without a copy, with rows at one distance and channels beside each other, where k is 1
    and the strides allow it; None where they do not."""
    if patches.kernel != 1 or (features.stride(-1) != 1 and features.shape[-1] != 1):
        return None
    sizes, strides = features.shape[:-1], features.stride()[:-1]
    axes = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            return None
    width = features.shape[-1]
    distance = axes[-1][1] if axes else width
    return features.as_strided((patches.count, width), (distance, 1)) if distance >= width else None
