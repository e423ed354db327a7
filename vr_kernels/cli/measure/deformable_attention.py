"""Multi-scale deformable attention, against transformers' PyTorch form of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.measure.bench import TRITON_ALONE, Bench, Case, Contender, compiled, results


@dataclass(frozen=True, kw_only=True)
class DeformableCase(Case):
    """Queries that sample every level of every image, in heads of ``width`` channels."""

    queries: int
    grids: tuple[int, ...] = (24, 24, 24)
    width: int = 128
    heads: int = 8
    points: int = 4
    tiles: int = 5  # of each of the batch's images

    @property
    def images(self) -> int:
        return self.batch * self.tiles

    @property
    def samples(self) -> int:
        return self.images * self.queries * self.heads * len(self.grids) * self.points

    @property
    def features(self) -> int:
        """Numbers in the values of all levels."""
        return self.images * sum(side**2 for side in self.grids) * self.heads * self.width

    @property
    def sizes(self) -> str:
        return (
            f"{self.queries} queries of {self.images} images, {self.heads} heads of {self.width} channels, "
            f"{self.points} points in levels of {', '.join(f'{side}x{side}' for side in self.grids)}"
        )

    def small(self) -> DeformableCase:
        return replace(self, queries=7, tiles=1, batch=1)

    def quick(self) -> DeformableCase:
        return replace(self, tiles=1)


# v1 and v2: the ablation of Vision Remember, 1024 channels on three levels; detr: an object detector's decoder.
SHAPES = {
    "v1": DeformableCase(name="v1", queries=144),
    "v2": DeformableCase(name="v2", queries=64),
    "detr": DeformableCase(name="detr", queries=300, grids=(64, 32, 16, 8), width=32, tiles=1),
    "tiny": DeformableCase(name="tiny", queries=9, grids=(6, 3), width=16, tiles=1),
}


@dataclass(frozen=True)
class Inputs:
    """What every contender gets. ``grad_out`` is None where there is no backward pass."""

    value: list[Tensor]  # L levels (B, H_l, W_l, h, d)
    locations: Tensor  # (B, Q, h, L, P, 2) float32, some of them outside
    weights: Tensor  # (B, Q, h, L, P) float32
    grad_out: Tensor | None  # (B, Q, h, d)

    @property
    def trained(self) -> list[Tensor]:
        return [self.locations, self.weights, *self.value]

    def double(self) -> Inputs:
        locations, weights, *value = (
            x.detach().double().requires_grad_(self.grad_out is not None) for x in self.trained
        )
        return Inputs(value, locations, weights, None if self.grad_out is None else self.grad_out.double())


Forward = Callable[[Inputs], Tensor]


def operator(backend: str | None) -> Forward:
    return lambda x: vr_kernels.deformable_attention(x.value, x.locations, x.weights, backend=backend)


def transformers_form() -> Forward:
    """As its Deformable DETR computes it where there is no kernel: everything in the values' dtype."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    attention = MultiScaleDeformableAttention()

    def forward(x: Inputs) -> Tensor:
        dtype, sizes = x.value[0].dtype, [(level.shape[1], level.shape[2]) for level in x.value]
        rows = torch.cat([level.flatten(1, 2) for level in x.value], 1)  # as the model holds them
        out: Tensor = attention(rows, None, sizes, None, x.locations.to(dtype), x.weights.to(dtype), 64)
        return out.unflatten(-1, x.value[0].shape[3:])  # type: ignore[no-any-return]

    return forward


WHAT = {
    "ours": "what vr_kernels chooses",
    "grid_sample": "torch's grid_sample, a level at a time, in float32",
    "transformers": "transformers' PyTorch form, in the values' dtype",
    "compiled": "transformers' form under torch.compile",
    "reference": "four gathers a point",
    "triton": "Triton kernels",
}


class DeformableAttentionBench(Bench[DeformableCase, Inputs]):
    name = "deformable_attention"
    title = "deformable attention"
    case_type = DeformableCase
    shapes = SHAPES
    default = ("v1", "v2", "detr")
    baselines = ("grid_sample", "transformers", "compiled", "reference", "triton")
    cuda_only = TRITON_ALONE
    yardstick = "grid_sample"

    def quantities(self, case: DeformableCase) -> Sequence[str]:
        levels = [f"value[{i}] gradient" for i in range(len(case.grids))]
        return ("output", "location gradient", "weight gradient", *levels) if case.backward else ("output",)

    def inputs(self, case: DeformableCase) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        shape = (case.images, case.queries, case.heads, len(case.grids), case.points)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(case.device, case.torch_dtype)

        value = [normal(case.images, side, side, case.heads, case.width) for side in case.grids]
        locations = (torch.rand(*shape, 2, generator=generator) * 1.1 - 0.05).to(case.device)
        weights = torch.rand(shape, generator=generator).to(case.device)
        grad_out = normal(*shape[:3], case.width) if case.backward else None
        x = Inputs(value, locations, weights / weights.sum((-1, -2), keepdim=True), grad_out)
        for trained in x.trained:
            trained.requires_grad_(case.backward)
        return x

    def exact(self, case: DeformableCase, x: Inputs) -> tuple[Tensor, ...]:
        return tuple(result.detach() for result in results(operator("reference"), x.double()))

    def contender(self, name: str, case: DeformableCase) -> Contender[Inputs]:
        return Contender(name, WHAT[name], partial(results, self._form(name)))

    def _form(self, name: str) -> Forward:
        if name == "transformers":
            return transformers_form()
        if name == "compiled":
            return compiled(transformers_form())
        return operator(None if name == "ours" else name)

    def chosen(self, case: DeformableCase, x: Inputs) -> str:
        return vr_kernels.explain(vr_kernels.deformable_attention, x.value, x.locations, x.weights).chosen

    def operations(self, case: DeformableCase) -> float:
        """Four corners a sample: mixed into the output; backward multiplied with its gradient, and with it again."""
        return 8.0 * case.samples * case.width * (3 if case.backward else 1)

    def bytes_moved(self, case: DeformableCase) -> float:
        """Values, places, weights and output once each, and backward the output's gradient and all other gradients."""
        out, places = case.images * case.queries * case.heads * case.width, 3 * case.samples * 4
        once = (case.features + out) * case.torch_dtype.itemsize + places
        return float(2 * once + out * case.torch_dtype.itemsize if case.backward else once)
