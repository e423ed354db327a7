"""Projectors: the ways from an encoder's features to the language model's tokens, all with one call.

>>> import torch
>>> projector = build_projector("pool", feature_dims=(32,), hidden_size=48, window=(3, 3))
>>> projected = projector([torch.randn(2, 6, 6, 32)])
>>> projected.tokens.shape, projected.grid, projected.window_index.shape
(torch.Size([2, 4, 48]), (2, 2), torch.Size([4, 9]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vr_kernels.compression.projectors.base import Projected, Projector
from vr_kernels.compression.projectors.deformable import DeformableProjector
from vr_kernels.compression.projectors.ldpv2 import LDPv2Projector
from vr_kernels.compression.projectors.perceiver import PerceiverProjector
from vr_kernels.compression.projectors.pixel_shuffle import PixelShuffleProjector
from vr_kernels.compression.projectors.stf import STFProjector
from vr_kernels.compression.projectors.token_packer import TokenPackerProjector
from vr_kernels.compression.projectors.two_layer import ConcatProjector, MLPProjector, PoolProjector
from vr_kernels.ops._arguments import Arguments

__all__ = [
    "PROJECTORS",
    "ConcatProjector",
    "DeformableProjector",
    "LDPv2Projector",
    "MLPProjector",
    "PerceiverProjector",
    "PixelShuffleProjector",
    "PoolProjector",
    "Projected",
    "Projector",
    "STFProjector",
    "TokenPackerProjector",
    "build_projector",
]

PROJECTORS: dict[str, type[Projector]] = {
    "mlp": MLPProjector,
    "pool": PoolProjector,
    "concat": ConcatProjector,
    "pixel_shuffle": PixelShuffleProjector,
    "perceiver": PerceiverProjector,
    "ldpv2": LDPv2Projector,
    "token_packer": TokenPackerProjector,
    "deformable": DeformableProjector,
    "stf": STFProjector,
}


def build_projector(
    name: str,
    *,
    feature_dims: int | Sequence[int],
    hidden_size: int,
    window: tuple[int, int] = (2, 2),
    **options: Any,
) -> Projector:
    """The projector called ``name``, newly initialised.

    Args:
        name: a key of ``PROJECTORS``.
        feature_dims: width of each level. ``PROJECTORS[name].default_levels(depth)`` says which levels the method
            takes.
        hidden_size: width of the language model.
        window: (s_h, s_w), features a token stands for along each axis.
        options: of that class, ``device`` and ``dtype`` among them.

    Raises:
        ValueError: an unknown name; sizes that do not fit. TypeError: an option that the class does not have.

    >>> build_projector("pixel_shuffle", feature_dims=32, hidden_size=48).output_grid(24, 24)
    (12, 12)
    """
    Arguments("build_projector").choice("name", name, tuple(PROJECTORS))
    return PROJECTORS[name](feature_dims, hidden_size, window, **options)
