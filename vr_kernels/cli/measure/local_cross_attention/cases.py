"""The papers' shapes by name, and the inputs that a measurement makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vr_kernels.cli.measure.tiles import TilesCase


@dataclass(frozen=True, kw_only=True)
class WindowCase(TilesCase):
    """Every token of every tile reads its window of the encoder's levels; E = C."""

    levels: tuple[int, ...] = (1024, 1024, 1024)

    def __post_init__(self) -> None:
        if self.channels % self.heads != 0:
            raise ValueError(f"{self.heads} heads do not divide the {self.channels} channels of {self.name}")

    @property
    def channels(self) -> int:
        return sum(self.levels)

    @property
    def keys(self) -> int:
        """K, the features of one window."""
        return self.window**2

    @property
    def direction(self) -> str:
        return "forward and backward, frozen features" if self.backward else "forward"

    @property
    def sizes(self) -> str:
        return (
            f"{self.queries} queries of {self.images} tiles, windows {self.window}x{self.window}, "
            f"C = E = {self.channels}, {self.heads} heads"
        )


# v1: CLIP-ViT-L/14-336 of Vision Remember v1; v2 and s4: SigLIP-L/16-384 of v2; tiny: to see whether things work.
SHAPES = {
    "v1": WindowCase(name="v1", window=2),
    "v2": WindowCase(name="v2", window=3),
    "s4": WindowCase(name="s4", window=4),
    "tiny": WindowCase(name="tiny", window=3, grid=6, levels=(32, 32, 32), tiles=1),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    query: Tensor  # (B, n, n, E)
    features: list[Tensor]  # L levels (B, H, W, D_l)
    key_weight: Tensor  # (E, C)
    value_weight: Tensor  # (E, C)
    heads: int
    grad_out: Tensor | None  # (B, n, n, E)

    @property
    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key_weight, self.value_weight

    def to_float64(self, image: int) -> Inputs:
        """One image's inputs in float64."""
        at = slice(image, image + 1)
        trained = [x.detach().double() for x in (self.query[at], self.key_weight, self.value_weight)]
        query, key_weight, value_weight = (x.requires_grad_(self.grad_out is not None) for x in trained)
        features = [level[at].double() for level in self.features]
        grad_out = None if self.grad_out is None else self.grad_out[at].double()
        return Inputs(query, features, key_weight, value_weight, self.heads, grad_out)


def make_inputs(case: WindowCase) -> Inputs:
    """Random inputs, the same ones each time, whose attention is flat in the first heads and peaked in the last."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(case.device, case.torch_dtype)

    n, channels = case.grid // case.window, case.channels
    sharpness = torch.linspace(0.5, 4, case.heads).repeat_interleave(channels // case.heads)
    query = normal(case.images, n, n, channels) * sharpness.to(case.device, case.torch_dtype)
    features = [normal(case.images, case.grid, case.grid, width) for width in case.levels]
    key_weight, value_weight = (normal(channels, channels, scale=channels**-0.5) for _ in range(2))
    grad_out = normal(case.images, n, n, channels) if case.backward else None
    for trained in (query, key_weight, value_weight):
        trained.requires_grad_(case.backward)
    return Inputs(query, features, key_weight, value_weight, case.heads, grad_out)
