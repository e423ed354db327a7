"""LLaVA-NeXT of transformers beside a tiny LLaVA-VR, and folders of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from python_tests.models import _llava_vr as tiny
from vr_kernels.models.llava_vr import LlavaVRConfig

VR = {"vr_levels": [2, 3], "vr_options": {"num_heads": 2}}
UNCOMPRESSED = VR | {"projector_type": "mlp", "vr_layers": []}
towers = pytest.mark.parametrize("tower", tiny.TOWERS)


def llava_next(tower: str = "clip") -> Any:
    own = tiny.config(tower)
    names = ("vision_config", "text_config", "image_token_index", "image_grid_pinpoints")
    names += ("vision_feature_select_strategy",)
    host = LlavaNextForConditionalGeneration(LlavaNextConfig(**{name: getattr(own, name) for name in names}))
    return tiny.randomise(host).eval()


def inputs_of(config: LlavaVRConfig) -> dict[str, Tensor]:
    return tiny.inputs(tiny.processor(config), ["w1 <image> w2", "w3"], [tiny.image()])


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
