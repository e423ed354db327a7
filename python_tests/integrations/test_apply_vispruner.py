"""VisPruner on a tower, and by ``apply_pruning`` on tiny random models: what the language model sees."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from python_tests.compression import _vispruner
from python_tests.compression.test_visionzip import expected_order
from python_tests.integrations._llava_models import model, processor
from python_tests.integrations._towers import MODELS, pixels, tower
from python_tests.integrations.test_apply_visionzip import logits_of_rows, prompt
from vr_kernels import apply_pruning, apply_visionzip, remove_pruning, remove_visionzip
from vr_kernels.integrations.vispruner import VisPruner

families = pytest.mark.parametrize("family", MODELS)
COUNT = 5


def rule(vision_tower: Any, images: Tensor, count: int = COUNT) -> list[tuple[list[int], Tensor]]:
    """Of each image the patches that stay and their features, by the eager maps of a tower with these weights."""
    eager = copy.deepcopy(vision_tower)
    eager.set_attn_implementation("eager")
    outputs = eager(images, output_hidden_states=True, output_attentions=True)
    first = int(hasattr(eager.embeddings, "class_embedding"))
    maps, hidden = outputs.attentions[-2].double(), outputs.hidden_states[-2][:, first:]
    scores = maps[:, :, 0, 1:].mean(1) if first else maps.mean((1, 2))
    kept = [
        _vispruner.vispruner(score.tolist(), states.double(), count, 0.5)
        for score, states in zip(scores, hidden, strict=True)
    ]
    return [(rows, states[rows]) for rows, states in zip(kept, hidden, strict=True)]


@families
@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_tower_hands_on_the_patches_of_the_rule(family: str, count: int) -> None:
    host, images = model("llava", family), pixels(3)
    with torch.no_grad():
        expected = rule(host.model.vision_tower, images, count)
        kept = VisPruner(host.model.vision_tower, count)(images)
    for b, (rows, states) in enumerate(expected):
        assert kept.dominant[b].tolist() == rows
        torch.testing.assert_close(kept.tokens[b], states)
        assert [kept.assignment[b].tolist().index(place) for place in range(count)] == rows


@families
def test_llava_sees_the_tokens_of_the_rule(family: str) -> None:
    host, images, ids = model("llava", family), pixels(2), prompt(COUNT, COUNT)
    with torch.no_grad():
        rows = [host.model.multi_modal_projector(states) for _, states in rule(host.model.vision_tower, images)]
        expected = logits_of_rows(host, rows, ids)
        got = apply_pruning(host, "vispruner", count=COUNT)(input_ids=ids, pixel_values=images).logits
        features = host.get_image_features(images)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert features.vispruner.dominant.shape == (2, COUNT)


def test_llava_next_sees_base_and_canvas() -> None:
    host, tiles, sizes = model("llava_next"), pixels(5), torch.tensor([[48, 48]])
    ids = prompt(5 * COUNT)
    with torch.no_grad():
        kept = rule(host.model.vision_tower, tiles)
        order = expected_order([rows for rows, _ in kept[1:]], 2, (3, 3), 0, 0)
        others = torch.cat([states for _, states in kept[1:]])[order]
        rows = [host.model.multi_modal_projector(torch.cat([kept[0][1], others]))]
        expected = logits_of_rows(host, rows, ids)
        apply_pruning(host, "vispruner", count=COUNT)
        got = host(input_ids=ids, pixel_values=tiles[None], image_sizes=sizes).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@families
def test_all_patches_are_the_model_bit_for_bit(family: str) -> None:
    host, images, ids = model("llava", family), pixels(2), prompt(9, 9)
    with torch.no_grad():
        before = host(input_ids=ids, pixel_values=images).logits
        apply_pruning(host, "vispruner", count=9)
        assert torch.equal(host(input_ids=ids, pixel_values=images).logits, before)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_the_processor_counts_and_is_put_back(kind: str) -> None:
    host, words = model(kind), processor(kind)
    image = Image.new("RGB", (48, 24), (200, 30, 90))
    plain = words(images=image, text="what is <image> here", return_tensors="pt")
    keys = list(host.state_dict())
    apply_pruning(host, "vispruner", words, count=COUNT)
    inputs = words(images=image, text="what is <image> here", return_tensors="pt")
    assert host.generate(**inputs, max_new_tokens=2, num_beams=2).shape[1] == inputs["input_ids"].shape[1] + 2
    remove_pruning(host, words)
    assert torch.equal(
        words(images=image, text="what is <image> here", return_tensors="pt")["input_ids"], plain["input_ids"]
    )
    assert list(host.state_dict()) == keys
    assert not set(vars(host.model)) & {"get_image_features", "_vr_kernels_pruning"}
    with torch.no_grad():
        host(**plain)


def test_methods_replace_one_another() -> None:
    host, images = model("llava"), pixels(1)
    apply_pruning(host, "vispruner", count=COUNT)
    apply_pruning(host, "random", layer=1, keep_ratio=0.5)
    with torch.no_grad():
        cache = host(input_ids=prompt(9), pixel_values=images).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(2)] == [11, 6]
    apply_pruning(host, "vispruner", count=COUNT)
    with torch.no_grad():
        cache = host(input_ids=prompt(COUNT), pixel_values=images).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(2)] == [COUNT + 2] * 2


def test_visionzip_and_a_pruned_decoder_go_together() -> None:
    host = apply_visionzip(model("llava"), dominant=5, contextual=3)
    apply_pruning(host, "fastv", layer=1, keep_ratio=0.5)
    with torch.no_grad():
        cache = host(input_ids=prompt(8), pixel_values=pixels(1)).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(2)] == [10, 6]


@pytest.mark.parametrize("following", ["fastv", "visionzip"])
def test_the_processor_writes_all_placeholders_when_another_method_follows(following: str) -> None:
    host, own = model("llava"), processor("llava")
    before = set(vars(own))
    apply_pruning(host, "vispruner", own, count=COUNT)
    assert set(vars(own)) > before
    if following == "fastv":
        apply_pruning(host, "fastv", layer=1, keep_ratio=0.5)
    else:
        apply_visionzip(host, dominant=5, contextual=3)
    assert set(vars(own)) == before


def test_visionzip_in_the_place_of_vispruner_stays_when_the_decoder_is_pruned() -> None:
    host = apply_visionzip(apply_pruning(model("llava"), "vispruner", count=COUNT), dominant=5, contextual=3)
    apply_pruning(host, "fastv", layer=1, keep_ratio=0.5)
    with torch.no_grad():
        cache = host(input_ids=prompt(8), pixel_values=pixels(1)).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(2)] == [10, 6]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"count": 0}, ValueError, "count is 0; it must be at least 1"),
    ({"count": 2.5}, TypeError, r"count is 2\.5; it must be an int"),
    ({"important_ratio": 2}, ValueError, "important_ratio is 2; it must be from 0 to 1"),
    ({"important_ratio": "half"}, TypeError, "important_ratio is 'half'; it must be a number"),
    ({"keep": 5}, TypeError, "vispruner has no option 'keep'; it has count, important_ratio"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda x: str(x)[:30])
def test_what_no_image_can_meet_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    host = model("llava")
    with pytest.raises(error, match=message):
        apply_pruning(host, "vispruner", **options)
    assert "get_image_features" not in vars(host.model)


@pytest.mark.parametrize("fault", [{"count": -3}, {"processor": object()}], ids=["count", "processor"])
def test_what_is_refused_leaves_the_pruning_that_was_there(fault: dict[str, Any]) -> None:
    host = apply_pruning(model("llava"), "fastv", layer=1, keep_ratio=0.5)
    with pytest.raises((TypeError, ValueError)):
        apply_pruning(host, "vispruner", **({"count": COUNT} | fault))
    with torch.no_grad():
        cache = host(input_ids=prompt(9), pixel_values=pixels(1)).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(2)] == [11, 6]
    assert "get_image_features" not in vars(host.model)


@pytest.mark.parametrize("level", [0, 6, -6])
def test_a_level_that_no_block_makes_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=f"^VisPruner: level is {level}; the tower's 5 blocks make hidden_states 1 to"):
        VisPruner(tower("clip"), level=level)


def test_other_methods_take_no_processor() -> None:
    with pytest.raises(TypeError, match="fastv takes no processor"):
        apply_pruning(model("llava"), "fastv", processor("llava"))


def test_removing_visionzip_leaves_what_is_not_its_own() -> None:
    host, images = model("llava", "clip"), pixels(1)
    apply_pruning(host, "vispruner", count=4)
    expected = host.get_image_features(images).pooler_output
    remove_visionzip(host)
    assert torch.equal(host.get_image_features(images).pooler_output[0], expected[0])
    remove_pruning(host)
    assert "get_image_features" not in vars(host.model)
