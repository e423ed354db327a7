"""The layer's shapes by name, and the inputs that a measurement makes of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import Case


@dataclass(frozen=True, kw_only=True)
class LayerCase(Case):
    """One image a sample: a system prompt, the tiles' vision tokens, and the question that guides them."""

    width: int = 896
    heads: int = 14
    tiles: int = 5  # AnyRes: a base tile and four more
    tokens_of_tile: int = 64
    text: int = 64
    system: int = 14

    def __post_init__(self) -> None:
        if self.width % self.heads != 0:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width} of {self.name}")

    @property
    def tokens(self) -> int:
        return self.tiles * self.tokens_of_tile

    @property
    def length(self) -> int:
        return self.system + self.tokens + self.text

    @property
    def sizes(self) -> str:
        return (
            f"{self.batch} images of {self.tokens} tokens in streams of {self.length}, "
            f"D = {self.width}, {self.heads} heads"
        )

    def small(self) -> LayerCase:
        return replace(self, batch=2, tiles=1, tokens_of_tile=9, text=5)

    def quick(self) -> LayerCase:
        return replace(self, tiles=1)


# Qwen2 of 0.5B and 1.5B parameters. v2: SigLIP-L/16-384 in windows of 3x3, v2-base its base tile alone; s2: windows of
# 2x2; raw: 27x27 patches uncompressed; tiny: to see whether things work.
SHAPES = {
    "v2": LayerCase(name="v2"),
    "v2-base": LayerCase(name="v2-base", tiles=1, text=32),
    "s2": LayerCase(name="s2", tokens_of_tile=144),
    "raw": LayerCase(name="raw", tokens_of_tile=729, text=128),
    "qwen-1.5b": LayerCase(name="qwen-1.5b", width=1536, heads=12),
    "tiny": LayerCase(name="tiny", width=32, heads=4, tiles=1, tokens_of_tile=9, text=5),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    hidden_states: Tensor  # (B, T, D)
    token_rows: Tensor  # (B, N)
    text_mask: Tensor  # (B, T)
    layer: vr_kernels.BidirectionalTokenAttention
    grad_out: Tensor | None  # (B, T, D)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        layer = self.layer
        assert layer.norm_weight is not None
        return self.hidden_states, layer.norm_weight, layer.qkv_proj.weight, layer.out_proj.weight

    def to_float64(self) -> Inputs:
        stream = self.hidden_states.detach().double().requires_grad_(self.grad_out is not None)
        grad_out = None if self.grad_out is None else self.grad_out.double()
        return Inputs(stream, self.token_rows, self.text_mask, copy.deepcopy(self.layer).double(), grad_out)


def make_inputs(case: LayerCase) -> Inputs:
    """Random inputs, the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.device, case.torch_dtype)

    row = torch.arange(case.length, device=case.device)
    start = torch.arange(case.batch, device=case.device)[:, None] * case.length
    layer = vr_kernels.BidirectionalTokenAttention(case.width, case.heads, zero_init=False)
    with torch.no_grad():
        for weight in layer.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if weight.dim() == 1 else noise * case.width**-0.5)
    layer = layer.to(case.device, case.torch_dtype).requires_grad_(case.backward)
    return Inputs(
        normal(case.batch, case.length, case.width).requires_grad_(case.backward),
        start + row[case.system : case.system + case.tokens],
        (row >= case.system + case.tokens).repeat(case.batch, 1),
        layer,
        normal(case.batch, case.length, case.width) if case.backward else None,
    )
