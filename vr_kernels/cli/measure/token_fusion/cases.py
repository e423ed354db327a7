"""LLaVA-STF's modules at LLaVA-1.5's sizes by name, and the inputs that a measurement makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Case


class Layer(NamedTuple):
    """A k x k convolution of stride k, and whether a GELU follows."""

    patches: int  # of one image
    columns: int  # C*k*k
    out: int
    kernel: int
    gelu: bool


@dataclass(frozen=True, kw_only=True)
class FusionCase(Case):
    """Convolutions one after another on a square grid: the first k x k, the others 1x1."""

    levels: tuple[int, ...]
    widths: tuple[int, ...]  # output channels of each layer
    kernel: int = 1
    grid: int = 24
    last_gelu: bool = True

    @property
    def layers(self) -> list[Layer]:
        patches, channels, kernel, layers = (self.grid // self.kernel) ** 2, sum(self.levels), self.kernel, []
        for number, width in enumerate(self.widths, start=1):
            gelu = self.last_gelu or number < len(self.widths)
            layers.append(Layer(patches, channels * kernel**2, width, kernel, gelu))
            channels, kernel = width, 1
        return layers

    @property
    def direction(self) -> str:
        return "forward and backward, frozen features" if self.backward else "forward"

    @property
    def sizes(self) -> str:
        steps = " -> ".join(map(str, (sum(self.levels), *self.widths)))
        return (
            f"{self.batch} x {self.grid}x{self.grid} features of {len(self.levels)} levels, "
            f"{self.kernel}x{self.kernel} patches, {steps}"
        )

    def small(self) -> FusionCase:
        """Four patches."""
        return replace(self, grid=2 * self.kernel, batch=1)

    def quick(self) -> FusionCase:
        return replace(self, grid=4 * self.kernel, batch=1)


# Tables 1a and 1b of the paper, and STF as its code has it; tiny: to see whether things work.
SHAPES = {
    "mbtf": FusionCase(name="mbtf", levels=(1024,) * 8, widths=(4096, 1024)),
    "stf": FusionCase(name="stf", levels=(1024,), widths=(4096, 16384, 4096), kernel=2),
    "stf_code": FusionCase(name="stf_code", levels=(1024,), widths=(16384, 4096), kernel=2, last_gelu=False),
    "tiny": FusionCase(name="tiny", levels=(24, 40), widths=(32, 16), kernel=2, grid=8),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    features: list[Tensor]  # L levels (B, H, W, D_l), hidden states without their CLS row
    weights: list[Tensor]  # (O, C*k*k) a layer
    biases: list[Tensor]
    layers: list[Layer]
    grad_out: Tensor | None  # as the output

    @property
    def trained(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def steps(self) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        return zip(self.layers, self.weights, self.biases, strict=True)

    def to_float64(self) -> Inputs:
        def exact(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]

        grad_out = None if self.grad_out is None else self.grad_out.double()
        return Inputs(exact(self.features), exact(self.weights), exact(self.biases), self.layers, grad_out)


def make_inputs(case: FusionCase) -> Inputs:
    """Random inputs, the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(case.device, case.torch_dtype)

    grid, layers = (case.grid, case.grid), case.layers
    states = [normal(case.batch, 1 + case.grid**2, width) for width in case.levels]
    weights = [normal(layer.out, layer.columns, scale=layer.columns**-0.5) for layer in layers]
    biases = [normal(layer.out, scale=0.1) for layer in layers]
    side = case.grid // case.kernel
    grad_out = normal(case.batch, side, side, case.widths[-1]) if case.backward else None
    for trained in (*weights, *biases):
        trained.requires_grad_(case.backward)
    return Inputs([state[:, 1:].unflatten(1, grid) for state in states], weights, biases, layers, grad_out)
