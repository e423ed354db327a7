"""Local attention on given keys and values: what moves them once is as fast as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

import vr_kernels
from vr_kernels.cli.measure.bench import Bench, Contender, compiled, results, under_sdpa
from vr_kernels.cli.measure.tiles import TilesCase


@dataclass(frozen=True, kw_only=True)
class AttentionCase(TilesCase):
    """Every token of every tile reads its window of keys and values, in heads of ``width`` channels."""

    width: int = 128

    @property
    def sizes(self) -> str:
        return (
            f"{self.queries} queries of {self.images} tiles, windows {self.window}x{self.window}, "
            f"{self.heads} heads of width {self.width}"
        )


# The windows of Vision Remember; tiny: to see whether things work.
SHAPES = {
    "v1": AttentionCase(name="v1", window=2),
    "v2": AttentionCase(name="v2", window=3),
    "s4": AttentionCase(name="s4", window=4),
    "tiny": AttentionCase(name="tiny", window=3, grid=6, heads=2, width=16, tiles=1),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    query: Tensor  # (B, n, n, h, d)
    key: Tensor  # (B, H, W, h, d)
    value: Tensor  # (B, H, W, h, d)
    grad_out: Tensor | None  # (B, n, n, h, d)

    @property
    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    def to_float64(self, image: int) -> Inputs:
        """One image's inputs in float64."""
        at, wanted = slice(image, image + 1), self.grad_out is not None
        query, key, value = (x.detach()[at].double().requires_grad_(wanted) for x in self.trained)
        return Inputs(query, key, value, None if self.grad_out is None else self.grad_out[at].double())


Forward = Callable[[Inputs], Tensor]


def windows_of(x: Tensor, windows: int) -> Tensor:
    """(B, H, W, h, d) partitioned by copy, as models do it: (B n n, h, K, d)."""
    images, height, _, heads, width = x.shape
    side = height // windows
    cut = x.view(images, windows, side, windows, side, heads, width).permute(0, 1, 3, 5, 2, 4, 6)
    return cut.reshape(images * windows**2, heads, side**2, width)


def naive(x: Inputs) -> Tensor:
    """Windows partitioned by copy, then scaled_dot_product_attention with one query a window."""
    key, value = (windows_of(part, x.query.shape[1]) for part in (x.key, x.value))
    query = x.query.flatten(0, 2).unsqueeze(2)  # (N, h, 1, d)
    return F.scaled_dot_product_attention(query, key, value).reshape(x.query.shape)


def operator(backend: str | None) -> Forward:
    def forward(x: Inputs) -> Tensor:
        out = vr_kernels.local_attention(x.query, x.key, x.value, backend=backend)
        assert isinstance(out, Tensor)
        return out

    return forward


FORMS: dict[str, tuple[str, Forward]] = {
    "ours": ("what vr_kernels chooses", operator(None)),
    "naive": ("windows partitioned by copy, SDPA", naive),
    "compiled": ("the same under torch.compile", naive),
    "triton": ("Triton kernel", operator("triton")),
    "cuda": ("CUDA C++ kernel", operator("cuda")),
    "flash": ("naive with SDPA's flash backend", under_sdpa(SDPBackend.FLASH_ATTENTION, naive)),
    "cudnn": ("naive with SDPA's cuDNN backend", under_sdpa(SDPBackend.CUDNN_ATTENTION, naive)),
}


class LocalAttentionBench(Bench[AttentionCase, Inputs]):
    name = "local_attention"
    title = "local attention"
    case_type = AttentionCase
    shapes = SHAPES
    default = ("v1", "v2", "s4")
    baselines = tuple(name for name in FORMS if name != "ours")
    cuda_only = dict.fromkeys(("triton", "cuda", "flash", "cudnn"), "it runs on CUDA")

    def quantities(self, case: AttentionCase) -> Sequence[str]:
        return ("output", "query gradient", "key gradient", "value gradient") if case.backward else ("output",)

    def inputs(self, case: AttentionCase) -> Inputs:
        """Random ones, whose attention is flat in the first heads and peaked in the last."""
        generator = torch.Generator().manual_seed(0)

        def normal(side: int) -> Tensor:
            shape = (case.images, side, side, case.heads, case.width)
            return torch.randn(shape, generator=generator).to(case.device, case.torch_dtype)

        sharpness = torch.linspace(0.5, 4, case.heads).unsqueeze(-1).to(case.device, case.torch_dtype)  # (h, 1)
        trained = (normal(case.side) * sharpness, normal(case.grid), normal(case.grid))
        query, key, value = (x.requires_grad_(case.backward) for x in trained)
        return Inputs(query, key, value, normal(case.side) if case.backward else None)

    def exact(self, case: AttentionCase, x: Inputs) -> tuple[Tensor, ...]:
        images = [results(naive, x.to_float64(image)) for image in range(case.images)]
        return tuple(torch.cat(column).detach() for column in zip(*images, strict=True))

    def contender(self, name: str, case: AttentionCase) -> Contender[Inputs]:
        what, forward = FORMS[name]
        return Contender(name, what, partial(results, compiled(forward) if name == "compiled" else forward))

    def chosen(self, case: AttentionCase, x: Inputs) -> str:
        return vr_kernels.explain(vr_kernels.local_attention, x.query, x.key, x.value).chosen

    def operations(self, case: AttentionCase) -> float:
        """Scores and mix; backward two products of their size for each of the two."""
        products = case.images * case.grid**2 * case.heads * case.width
        return products * (12.0 if case.backward else 4.0)

    def bytes_moved(self, case: AttentionCase) -> float:
        """Queries, keys, values and output once each; with a backward pass all of them again, as gradients."""
        tokens = 2 * case.side**2 + 2 * case.grid**2
        once = case.images * tokens * case.heads * case.width * case.torch_dtype.itemsize
        return float(2 * once if case.backward else once)
