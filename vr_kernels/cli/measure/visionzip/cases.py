"""The paper's vision tower by name, with random weights, and the images that go through it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vr_kernels.cli.measure.bench import Case


@dataclass(frozen=True, kw_only=True)
class TowerCase(Case):
    """A batch of images through a frozen CLIP tower; ``scored``: scores are compared too, which a plain tower lacks."""

    image: int = 336
    patch: int = 14
    width: int = 1024
    inner: int = 4096
    blocks: int = 24
    heads: int = 16
    dominant: int = 54
    contextual: int = 10
    scored: bool = False

    def __post_init__(self) -> None:
        if self.backward:
            raise ValueError(f"{self.name}: VisionZip's encoder is frozen; it is measured forward alone")

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def rows(self) -> int:
        return self.patches + 1

    @property
    def sizes(self) -> str:
        return (
            f"{self.batch} images of {self.rows} rows to {self.dominant} + {self.contextual} tokens, "
            f"{self.blocks} blocks of {self.width}"
        )

    def small(self) -> TowerCase:
        return replace(self, batch=2, width=64, inner=128, blocks=3, heads=2, image=12 * self.patch, scored=True)

    def quick(self) -> TowerCase:
        return replace(self, width=128, inner=512, blocks=4, heads=4)


SHAPES = {
    "clip-l": TowerCase(name="clip-l"),
    "tiny": TowerCase(name="tiny", image=168, width=64, inner=128, blocks=3, heads=2),
}


@dataclass(frozen=True)
class Inputs:
    """Two towers of the same parameters: which attention runs is settled when a tower is made."""

    sdpa: Any
    eager: Any
    images: Tensor  # (B, 3, H, W)


def make_inputs(case: TowerCase) -> Inputs:
    """Random weights and pixels, the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sdpa, eager = (_tower(case, attention) for attention in ("sdpa", "eager"))
        sdpa = sdpa.to(case.device, case.torch_dtype)
        eager.load_state_dict(sdpa.state_dict(), assign=True)
        images = torch.randn(case.batch, 3, case.image, case.image)
    return Inputs(sdpa, eager, images.to(case.device, case.torch_dtype))


def _tower(case: TowerCase, attention: str) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings: Any = {
        "hidden_size": case.width, "intermediate_size": case.inner, "num_hidden_layers": case.blocks,
        "num_attention_heads": case.heads, "image_size": case.image, "patch_size": case.patch,
        "attn_implementation": attention,
    }  # fmt: skip
    tower: Any = CLIPVisionModel(CLIPVisionConfig(**settings))
    return tower.eval().requires_grad_(False)
