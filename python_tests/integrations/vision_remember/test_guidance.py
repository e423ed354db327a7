"""Which text guides the image tokens, in calls that make it hard to know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from python_tests.integrations.vision_remember._families import (
    IMAGE,
    batch,
    generate,
    patched,
    randomise,
    randomise_blocks,
)
from python_tests.integrations.vision_remember._families import model as unpatched
from vr_kernels import apply_pruning, apply_vision_remember
from vr_kernels.integrations.vision_remember.context import GUIDED

QUESTION = [9, 10, 11, 12]


def behind(inputs: dict[str, Tensor], more: Tensor) -> dict[str, Tensor]:
    """The inputs, and text behind them."""
    ids = torch.cat([inputs["input_ids"], more], 1)
    grown = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        grown["mm_token_type_ids"] = (ids == IMAGE).long()
    return grown


def without_images(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if not name.startswith(("pixel", "image"))}


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("filled_by", ["generate", "a pass by itself"])
def test_a_cache_that_another_question_guided_is_refused(kind: str, filled_by: str) -> None:
    model = patched(kind)
    inputs = batch(model, kind, [[0]])
    if filled_by == "generate":
        cache = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).past_key_values
    else:
        with torch.no_grad():
            cache = model(**inputs, use_cache=True).past_key_values
    dialogue = without_images(behind(inputs, torch.tensor([QUESTION])))
    with pytest.raises(ValueError, match=r"goes on from a cache of .* tokens with images.*earlier prompt"):
        model.generate(**dialogue, past_key_values=copy.deepcopy(cache), max_new_tokens=1)


def test_a_cache_that_was_emptied_of_its_images_is_taken() -> None:
    model = patched("llava")
    text = torch.tensor([QUESTION])
    cache = DynamicCache()
    setattr(cache, GUIDED, True)
    expected = generate(model, {"input_ids": text})
    assert torch.equal(generate(model, {"input_ids": text}, past_key_values=cache), expected)
    assert not hasattr(cache, GUIDED)


def test_a_cache_without_guidance_goes_on_as_one_prefill() -> None:
    model = patched("llava", bidirectional=False)
    inputs = batch(model, "llava", [[0]])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    dialogue = behind(inputs, torch.tensor([QUESTION]))
    assert not hasattr(cache, GUIDED)
    assert torch.equal(generate(model, without_images(dialogue), past_key_values=cache), generate(model, dialogue))


@torch.no_grad()
def test_a_pass_takes_no_prompt_from_a_generation_that_read_the_same_images() -> None:
    model = patched("llava")
    inputs = batch(model, "llava", [[0]])
    encoded = {"image": model.get_image_features(inputs["pixel_values"], return_dict=True)}
    prompt = without_images(inputs)
    longer = behind(prompt, torch.tensor([QUESTION]))
    expected = model(**longer, mm_encoder_outputs=encoded).logits
    model.generate(**prompt, mm_encoder_outputs=encoded, max_new_tokens=2)
    assert torch.equal(model(**longer, mm_encoder_outputs=encoded, logits_to_keep=0).logits, expected)


def pairs(mask: Tensor) -> Tensor:
    """The additive mask (B, 1, T, T) of a causal decoder, from one of tokens."""
    length = mask.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None].bool()
    seen = seen | torch.eye(length, dtype=torch.bool)  # a row of padding sees itself
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@torch.no_grad()
def test_labels_do_not_tell_padding_where_the_mask_is_of_pairs() -> None:
    model = patched("llava")
    inputs = batch(model, "llava", [[0], [0, 1]])
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(**inputs, labels=labels, position_ids=positions).logits
    given: dict[str, Any] = {**inputs, "attention_mask": pairs(mask), "position_ids": positions, "labels": labels}
    with pytest.raises(ValueError, match=r"attention_mask has no .*; give prompt_mask"):
        model(**given)
    prompt = mask.bool()
    prompt[:, -2:] = False
    got = model(**given, prompt_mask=prompt).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_three_rows_of_positions_leave_rotary_blocks_as_they_are(kind: str) -> None:
    """They are time, row and column, and in none of them do the tokens of an image follow one another."""
    model = patched(kind, bidirectional_rope_theta=10000.0)
    inputs = batch(model, kind, [[2]])
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    assert len(positions) == 3
    torch.testing.assert_close(model(**inputs, position_ids=positions).logits, model(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_block_in_front_of_a_layer_runs_before_that_layer_is_scored(seed: int) -> None:
    outputs = []
    for pruned_first in (False, True):
        model = randomise(unpatched("llava"), seed)
        if pruned_first:
            apply_pruning(model, "fastv", layer=2, keep_ratio=0.3)
        apply_vision_remember(model, (2,), levels=(1, 2), num_heads=4, position="before")
        if not pruned_first:
            apply_pruning(model, "fastv", layer=2, keep_ratio=0.3)
        randomise_blocks(model)
        outputs.append(model(**batch(model, "llava", [[0]])).logits)
    assert torch.equal(*outputs)
