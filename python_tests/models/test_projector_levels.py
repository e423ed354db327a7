"""Which levels of the tower a projector reads where the config names none."""

from __future__ import annotations

import pytest
from transformers import CLIPVisionConfig

from python_tests.models import _llava_vr as tiny


@pytest.mark.parametrize(
    ("variant", "levels"), [("paper", list(range(3, 25, 3))), ("code", [23, 21, 18, 15, 12, 9, 6, 3])]
)
def test_those_of_stf_are_its_variant_s(variant: str, levels: list[int]) -> None:
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=24, num_attention_heads=2, image_size=24, patch_size=4
    )
    options = {"vr_window": [2, 2], "projector_type": "stf", "projector_options": {"variant": variant}}
    config = tiny.config("clip", vision_config=tower, **options)
    assert config.vision_feature_layer == levels
    assert list(config.projector_levels) == levels
