"""The decoder with blocks beside an oracle that runs it layer by layer and calls each block by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.masking_utils import create_causal_mask

from python_tests.models import _llava_vr as tiny
from vr_kernels import VisionTokenMap, capture_features
from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration
from vr_kernels.models.llava_vr.slots import tokens_of_image

WINDOW, GRID = 3, (2, 2)
SIZE = (40, 60)  # a canvas of 2x2 tiles beside the base tile


def one_image(model: Any) -> dict[str, Tensor]:
    return tiny.inputs(tiny.processor(model.config), ["w1 w5 <image> w2 w3"], [tiny.image(*SIZE)])


def by_hand(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what every decoder layer and the final norm hand on."""
    config, inner = model.config, model.model
    levels = sorted({config.vision_config.num_hidden_layers - 1, *config.vr_levels})
    with capture_features(inner.vision_tower, levels, saliency=config.saliency) as captured:
        inner.vision_tower(inputs["pixel_values"][0])
    by_level = dict(zip(levels, captured.features, strict=True))  # (5 tiles, 6, 6, D_v)
    pooled = by_level[levels[-1]].unflatten(2, (2, 3)).unflatten(1, (2, 3)).mean((2, 4))  # (5, 2, 2, D_v)
    projector = inner.multi_modal_projector
    tokens = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(pooled))).flatten(0, 2)  # (5*4, D)

    slots = tokens_of_image(SIZE, config.image_grid_pinpoints, tiny.SIDE, GRID)
    ids = inputs["input_ids"][0]
    states = inner.language_model.embed_tokens(ids).clone()  # (T, D)
    is_slot = ids == tiny.IMAGE
    states[is_slot] = torch.where((slots < 0)[:, None], inner.image_newline, tokens[slots.clamp(min=0)])
    states = states[None]

    cells = torch.full((1, len(ids), 3), -1)
    cells[0, is_slot] = torch.stack([slots // 4, slots % 4 // 2, slots % 2], 1).masked_fill(slots[:, None] < 0, -1)
    vision_map = VisionTokenMap.from_slots(cells, grid=GRID, feature_grid=(6, 6), tiles=[5])
    call: dict[str, Any] = {
        "saliency": captured.saliency,
        "text_mask": ~is_slot[None] if config.vision_remember.text_guide != "none" else None,
    }
    features = [by_level[level] for level in config.vr_levels]

    decoder = inner.language_model
    positions = torch.arange(len(ids))[None]
    mask = create_causal_mask(
        config=config.text_config, inputs_embeds=states, attention_mask=None, past_key_values=None,
        position_ids=positions,
    )  # fmt: skip
    rotary, seen = decoder.rotary_emb(states, positions), []
    for number, layer in enumerate(decoder.layers, 1):
        made = states
        if number in config.vr_layers and config.vr_position == "before":
            states = layer.vision_remember(states, vision_map, features, **call)
        # transformers captures what a layer made, and what entered the first one.
        seen.append(states if number == 1 else made)
        states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        if number in config.vr_layers and config.vr_position == "after":
            states = layer.vision_remember(states, vision_map, features, **call)
    states = decoder.norm(states)
    return model.lm_head(states), [*seen, states]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("siglip", {}),
    "v1 with CLS saliency": ("clip", {"vr_bidirectional": False, "vr_text_guided": False, "vr_saliency": "value"}),
    "received saliency": ("siglip", {"vr_saliency": "value"}),
    "saliency of features": ("clip", {"vr_saliency": "feature"}),
    "bidirectional first": (
        "siglip", {"vr_options": {"num_heads": 2, "layers": ["bidirectional", "cross_attention"]}},
    ),
    "global": ("siglip", {"vr_interaction": "global"}),
    "deformable": ("siglip", {"vr_interaction": "deformable"}),
    "levels in another order": ("clip", {"vr_levels": [3, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_and_captured_states_are_those_of_the_oracle(variant: str, position: str) -> None:
    tower, changes = VARIANTS[variant]
    model = tiny.model(tower, vr_position=position, vr_layers=[1, 3], **changes)
    inputs = one_image(model)
    expected, states = by_hand(model, inputs)
    got = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected, rtol=1e-4, atol=1e-4)
    assert len(got.hidden_states) == len(states)
    for mine, its in zip(states, got.hidden_states, strict=True):
        torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_states_captured_before_a_layer_hold_what_its_block_made() -> None:
    """After a layer: the next state. The states themselves differ between the two positions."""
    model = tiny.model(vr_layers=[2])
    inputs = one_image(model)
    plain = tiny.model(vr_layers=[])
    plain.load_state_dict(model.state_dict(), strict=False)
    with_block = model(**inputs, output_hidden_states=True).hidden_states
    without = plain(**inputs, output_hidden_states=True).hidden_states
    same = [torch.equal(a, b) for a, b in zip(with_block, without, strict=True)]
    assert same == [True, True, False, False, False, False]


def llava_next(model: Any) -> Any:
    config = model.config
    values = {
        name: getattr(config, name)
        for name in ("vision_config", "text_config", "image_token_index", "image_grid_pinpoints")
    }
    strategy = config.vision_feature_select_strategy
    twin = LlavaNextForConditionalGeneration(LlavaNextConfig(**values, vision_feature_select_strategy=strategy)).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("decoder", tiny.DECODERS)
@pytest.mark.parametrize("tower", tiny.TOWERS)
@torch.no_grad()
def test_without_blocks_and_compression_it_is_llava_next(tower: str, decoder: str) -> None:
    model = tiny.model(tower, decoder, vr_layers=[], projector_type="mlp")
    images = [tiny.image(*size, seed=i) for i, size in enumerate([(40, 60), (70, 30), (30, 30)])]
    inputs = tiny.inputs(tiny.processor(model.config), ["w1 <image> w2", "<image> w5 <image> w6"], images)
    assert torch.equal(model(**inputs).logits, llava_next(model)(**inputs).logits)


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_new_blocks_change_no_bit_of_the_baseline(variant: str, position: str) -> None:
    tower, changes = VARIANTS[variant]
    baseline = tiny.model(tower, vr_layers=[])
    model = LlavaVRForConditionalGeneration(tiny.config(tower, vr_position=position, **changes)).eval()
    missing, unexpected = model.load_state_dict(baseline.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {name for name in model.state_dict() if ".vision_remember." in name}
    inputs = one_image(model)
    assert torch.equal(model(**inputs).logits, baseline(**inputs).logits)
