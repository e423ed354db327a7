"""What levels and saliency of a vision tower cost: ``capture_features`` against eager attention maps and none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli.checks import require
from vr_kernels.cli.measure.bench import Bench, Case, Contender


@dataclass(frozen=True, kw_only=True)
class TowerCase(Case):
    """A CLIP tower with random weights; its last level but one, and the CLS row's attention in that block."""

    blocks: int = 24
    width: int = 1024
    heads: int = 16
    grid: int = 24
    patch: int = 14

    def __post_init__(self) -> None:
        if self.backward:
            raise ValueError("saliency is measured forward alone, as a frozen encoder runs")
        if self.width % self.heads != 0:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width} of {self.name}")

    @property
    def level(self) -> int:
        return self.blocks - 1

    @property
    def rows(self) -> int:
        return 1 + self.grid**2

    @property
    def sizes(self) -> str:
        return f"{self.blocks} blocks of width {self.width}, {self.heads} heads, {self.rows} rows, {self.batch} images"

    def small(self) -> TowerCase:
        return replace(self, blocks=2, width=4 * self.heads, grid=4, batch=1)

    def quick(self) -> TowerCase:
        return replace(self, blocks=2)


SHAPES = {
    "clip-l": TowerCase(name="clip-l"),
    "tiny": TowerCase(name="tiny", blocks=3, width=32, heads=2, grid=4),
}


@dataclass(frozen=True)
class Inputs:
    tower: Any  # a transformers CLIPVisionModel
    pixels: Tensor  # (B, 3, H, W)


def _saliency(query: Tensor, key: Tensor) -> Tensor:
    """Of the probabilities, since eager attention maps hold no logits."""
    return vr_kernels.cls_saliency(query[:, 0], key, source="probs")


def captured(level: int, x: Inputs) -> tuple[Tensor, ...]:
    x.tower.set_attn_implementation("sdpa")
    with torch.no_grad(), vr_kernels.capture_features(x.tower, level, saliency=_saliency) as features:
        x.tower(x.pixels)
    assert features.saliency is not None
    return features.features[0].flatten(1, 2), features.saliency.flatten(1)


def eager(level: int, x: Inputs) -> tuple[Tensor, ...]:
    """The maps of all blocks, as transformers returns them."""
    x.tower.set_attn_implementation("eager")
    with torch.no_grad():
        output = x.tower(x.pixels, output_hidden_states=True, output_attentions=True)
    maps = output.attentions[level - 1]
    probabilities = maps.to(torch.promote_types(maps.dtype, torch.float32))[:, :, 0, 1:].mean(1)
    return output.hidden_states[level][:, 1:], probabilities.sigmoid()


def plain(level: int, x: Inputs) -> tuple[Tensor, ...]:
    """The level alone."""
    x.tower.set_attn_implementation("sdpa")
    with torch.no_grad():
        return (x.tower(x.pixels, output_hidden_states=[level]).hidden_states[level][:, 1:],)


FORMS = {
    "ours": ("capture_features: SDPA, saliency of one block's q and k", captured),
    "eager": ("eager attention, maps of all blocks", eager),
    "plain": ("SDPA, the level without saliency", plain),
}


class SaliencyBench(Bench[TowerCase, Inputs]):
    name = "saliency"
    title = "a vision tower's level and saliency"
    case_type = TowerCase
    shapes = SHAPES
    default = ("clip-l",)
    baselines = ("eager", "plain")
    yardstick = "eager"
    outputs = 2

    def keeps_no_buffer(self, name: str) -> bool:
        """Contenders know the levels of the full tower: a smaller one cannot warm them up."""
        return True

    def quantities(self, case: TowerCase) -> Sequence[str]:
        return (f"hidden_states[{case.level}]", "saliency")

    def inputs(self, case: TowerCase) -> Inputs:
        require("models", "transformers")
        from transformers import CLIPVisionConfig, CLIPVisionModel

        size = case.grid * case.patch
        config = CLIPVisionConfig(
            hidden_size=case.width,
            intermediate_size=4 * case.width,
            num_hidden_layers=case.blocks,
            num_attention_heads=case.heads,
            image_size=size,
            patch_size=case.patch,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tower: Any = CLIPVisionModel(config)
            pixels = torch.randn(case.batch, 3, size, size)
        return Inputs(tower.eval().to(case.device, case.torch_dtype), pixels.to(case.device, case.torch_dtype))

    def exact(self, case: TowerCase, x: Inputs) -> tuple[Tensor, ...]:
        results = eager(case.level, Inputs(x.tower.double(), x.pixels.double()))
        x.tower.to(case.torch_dtype)  # back: a number that was narrow has not changed
        return results

    def contender(self, name: str, case: TowerCase) -> Contender[Inputs]:
        what, form = FORMS[name]
        return Contender(name, what, partial(form, case.level))

    def chosen(self, case: TowerCase, x: Inputs) -> str:
        query = torch.empty(
            case.batch, case.heads, case.width // case.heads, dtype=case.torch_dtype, device=case.device
        )
        key = query.unsqueeze(1).expand(-1, case.rows, -1, -1)
        return vr_kernels.explain(vr_kernels.cls_saliency, query, key, source="probs").chosen

    def operations(self, case: TowerCase) -> float:
        """A block: 24 D^2 a row in its Linears, 4 N D a row in its attention. The last block's output is not asked for,
        and runs all the same."""
        per_row = 24 * case.width**2 + 4 * case.rows * case.width
        return float(case.batch * case.rows * case.blocks * per_row)

    def bytes_moved(self, case: TowerCase) -> float:
        """The weights, the pixels and the level once each."""
        weights = case.blocks * 12 * case.width**2
        pixels = case.batch * 3 * (case.grid * case.patch) ** 2
        return float((weights + pixels + case.batch * case.rows * case.width) * case.torch_dtype.itemsize)
