"""The image processor that a configuration implies makes the pixels that its tower was trained on."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CLIPVisionConfig, MetaClip2VisionConfig, SiglipVisionConfig

from python_tests.models import _llava_vr as tiny

CLIP, SIGLIP = [0.48145466, 0.4578275, 0.40821073], [0.5, 0.5, 0.5]


@pytest.mark.parametrize("pinpoints", [tiny.PINPOINTS, []], ids=["anyres", "one tile"])
@pytest.mark.parametrize("saliency", ["none", "value"])
@pytest.mark.parametrize(
    ("kind", "mean"), [(CLIPVisionConfig, CLIP), (MetaClip2VisionConfig, CLIP), (SiglipVisionConfig, SIGLIP)]
)
def test_pixels_are_normalised_as_the_towers_kind_wants(
    kind: type[Any], mean: list[float], saliency: str, pinpoints: list[Any]
) -> None:
    vision = kind(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=tiny.SIDE,
        patch_size=tiny.PATCH,
    )  # fmt: skip
    config = tiny.config(vision_config=vision, vr_saliency=saliency, image_grid_pinpoints=pinpoints)
    assert list(tiny.processor(config).image_processor.image_mean) == mean
