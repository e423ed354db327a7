"""The papers' encoders by name, and the queries and keys that a measurement makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Case


@dataclass(frozen=True, kw_only=True)
class TokenCase(Case):
    """Rows of an encoder's self-attention: the first ``rows`` of each tile, or all of them."""

    tokens: int
    rows: int | None = None  # None: all
    tiles: int = 5  # AnyRes: a base tile and four more, of each of the batch's images
    heads: int = 16
    width: int = 64  # of a head

    @property
    def images(self) -> int:
        return self.batch * self.tiles

    @property
    def sizes(self) -> str:
        rows = "all rows" if self.rows is None else f"{self.rows} row{'s' * (self.rows > 1)}"
        return f"{rows} of {self.images} x {self.tokens} tokens, {self.heads} heads of width {self.width}"

    def small(self) -> TokenCase:
        return replace(self, tokens=min(self.tokens, 97), tiles=1, batch=1)

    def quick(self) -> TokenCase:
        return replace(self, tokens=min(self.tokens, 300), tiles=1)


# CLIP-ViT-L/14-336 has 577 tokens with the CLS token, whose row it is; tiny: to see whether things work.
ROWS = {
    "cls": TokenCase(name="cls", tokens=577, rows=1),
    "cls40": TokenCase(name="cls40", tokens=577, rows=1, tiles=40),
    "raters": TokenCase(name="raters", tokens=577, rows=8),
    "tiny": TokenCase(name="tiny", tokens=50, rows=1, tiles=1, heads=2, width=16),
}

# SigLIP-SO400M/14-384 has 729 tokens (of heads of 72); 1,024 and 4,096 are grids of 32 and 64.
COLUMNS = {
    "siglip": TokenCase(name="siglip", tokens=729, tiles=1, width=72),
    "grid32": TokenCase(name="grid32", tokens=1024, tiles=1),
    "grid64": TokenCase(name="grid64", tokens=4096, tiles=1, heads=4),
    "tiny": TokenCase(name="tiny", tokens=50, tiles=1, heads=2, width=16),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    query: Tensor  # (B, N, h, d)
    key: Tensor  # (B, N, h, d)
    rows: int | None
    grad_out: Tensor | None  # (B, N)

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        return self.query, self.key

    @property
    def query_rows(self) -> Tensor:
        return self.query if self.rows is None else self.query[:, : self.rows]

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[-1])


def make_inputs(case: TokenCase) -> Inputs:
    """Random inputs, the same ones each time, whose attention is flat in the first heads and peaked in the last."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shape = (case.images, case.tokens, case.heads, case.width)
    sharpness = torch.linspace(0.5, 4, case.heads).unsqueeze(-1)  # (h, 1)
    query, key = (x.to(case.device, case.torch_dtype) for x in (normal(*shape) * sharpness, normal(*shape)))
    grad_out = normal(case.images, case.tokens).to(case.device, case.torch_dtype) if case.backward else None
    return Inputs(query.requires_grad_(case.backward), key.requires_grad_(case.backward), case.rows, grad_out)
