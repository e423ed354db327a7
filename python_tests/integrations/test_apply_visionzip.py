"""``apply_visionzip`` on tiny random models: what the language model sees, and how many placeholders a prompt has."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from python_tests.compression._visionzip import Zipped, of_tower
from python_tests.compression.test_visionzip import expected_order
from python_tests.integrations._llava_models import IMAGE, VIDEO, model, processor
from python_tests.integrations._towers import MODELS, pixels
from vr_kernels import VisionZip, apply_visionzip, remove_visionzip
from vr_kernels.integrations import train_projector_only

KINDS = ("llava", "llava_next", "video_llava")
kinds = pytest.mark.parametrize("kind", KINDS)
families = pytest.mark.parametrize("family", MODELS)
DOMINANT, CONTEXTUAL = 4, 2
COUNT = DOMINANT + CONTEXTUAL
SMALL = {"dominant": DOMINANT, "contextual": CONTEXTUAL}


def eager_rule(vision_tower: Any, images: Tensor) -> list[Zipped]:
    """The rule on the eager maps of a tower with these weights."""
    eager = copy.deepcopy(vision_tower)
    eager.set_attn_implementation("eager")
    return of_tower(eager, images, DOMINANT, CONTEXTUAL)


def logits_of_rows(host: Any, rows: list[Tensor], ids: Tensor, placeholder: int = IMAGE) -> Tensor:
    """What the unchanged language model makes of projected rows in the placeholders' places."""
    embeddings = host.get_input_embeddings()(ids)
    embeddings = embeddings.masked_scatter((ids == placeholder)[..., None], torch.cat(rows).to(embeddings))
    return host.lm_head(host.model.language_model(inputs_embeds=embeddings).last_hidden_state)


def prompt(*counts: int, placeholder: int = IMAGE) -> Tensor:
    """One text with these many placeholders after one another, a word between them."""
    return torch.tensor([[4, *(token for count in counts for token in [*[placeholder] * count, 5])]])


@families
def test_llava_sees_the_tokens_of_the_rule(family: str) -> None:
    host, images = model("llava", family), pixels(2)
    ids = prompt(COUNT, COUNT)
    with torch.no_grad():
        rows = [host.model.multi_modal_projector(z.tokens) for z in eager_rule(host.model.vision_tower, images)]
        expected = logits_of_rows(host, rows, ids)
        got = apply_visionzip(host, **SMALL)(input_ids=ids, pixel_values=images).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@families
def test_llava_next_sees_base_canvas_cls_rows_and_contexts(family: str) -> None:
    """Two images: 2x2 tiles, and 1x2 with padded tiles behind them."""
    host = model("llava_next", family)
    tiles = pixels(10).unflatten(0, (2, 5))
    sizes, grids = torch.tensor([[48, 48], [20, 40]]), [(2, 2), (1, 2)]
    counts = [5 * COUNT, 3 * COUNT]
    ids = prompt(*counts)
    rows = []
    with torch.no_grad():
        for image, grid in zip(tiles, grids, strict=True):
            zipped = eager_rule(host.model.vision_tower, image[: 1 + grid[0] * grid[1]])
            order = expected_order([z.dominant for z in zipped[1:]], grid[1], (3, 3), CONTEXTUAL, int(family == "clip"))
            others = torch.cat([z.tokens for z in zipped[1:]])[order]
            rows.append(host.model.multi_modal_projector(torch.cat([zipped[0].tokens, others])))
        expected = logits_of_rows(host, rows, ids)
        got = apply_visionzip(host, **SMALL)(input_ids=ids, pixel_values=tiles, image_sizes=sizes).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@families
def test_video_llava_sees_every_frame_zipped(family: str) -> None:
    host, frames, images = model("video_llava", family), pixels(6), pixels(2) + 1
    ids = prompt(3 * COUNT, 3 * COUNT, placeholder=VIDEO)
    picture_ids = prompt(COUNT, COUNT)
    with torch.no_grad():
        rows = [host.model.multi_modal_projector(z.tokens) for z in eager_rule(host.model.video_tower, frames)]
        expected = logits_of_rows(host, rows, ids, VIDEO)
        rows = [host.model.multi_modal_projector(z.tokens) for z in eager_rule(host.model.image_tower, images)]
        expected_picture = logits_of_rows(host, rows, picture_ids)
        apply_visionzip(host, **SMALL)
        got = host(input_ids=ids, pixel_values_videos=frames.unflatten(0, (2, 3))).logits
        name = "pixel_values" if "pixel_values" in inspect.signature(host.forward).parameters else "pixel_values_images"
        got_picture = host(input_ids=picture_ids, **{name: images}).logits  # of transformers before 5.23 the second
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got_picture, expected_picture, atol=1e-4, rtol=1e-4)


def inputs_of(kind: str, text: int = 1) -> dict[str, Any]:
    """``text`` samples of one image each."""
    if kind == "video_llava":
        videos = pixels(2 * text).unflatten(0, (text, 2))
        return {"input_ids": prompt(2 * COUNT, placeholder=VIDEO).expand(text, -1), "pixel_values_videos": videos}
    if kind == "llava":
        return {"input_ids": prompt(COUNT).expand(text, -1), "pixel_values": pixels(text)}
    tiles = pixels(3 * text).unflatten(0, (text, 3))
    sizes = torch.tensor([[24, 48]]).expand(text, -1)
    return {"input_ids": prompt(3 * COUNT).expand(text, -1), "pixel_values": tiles, "image_sizes": sizes}


@kinds
@pytest.mark.parametrize(
    "search", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}], ids=["greedy", "beams"]
)
def test_generation_of_a_batch_is_that_of_its_samples(kind: str, search: dict[str, Any]) -> None:
    host = apply_visionzip(model(kind), **SMALL)
    inputs = inputs_of(kind, 2)
    together = host.generate(**inputs, max_new_tokens=5, **search)
    for b in range(2):
        alone = host.generate(**{name: x[b : b + 1] for name, x in inputs.items()}, max_new_tokens=5, **search)
        assert torch.equal(together[b : b + 1], alone)


@kinds
def test_generation_is_what_the_logits_say_without_a_cache(kind: str) -> None:
    host, inputs = apply_visionzip(model(kind), **SMALL), inputs_of(kind)
    no_placeholders = [IMAGE, VIDEO]
    generated = host.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=no_placeholders)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        for _ in range(3):
            last = host(input_ids=ids, **inputs).logits[:, -1:]
            ids = torch.cat([ids, last.index_fill(2, torch.tensor(no_placeholders), -torch.inf).argmax(-1)], 1)
    assert torch.equal(generated, ids)


@kinds
def test_removed_the_model_is_as_it_was(kind: str) -> None:
    host = model(kind)
    inputs = inputs_of(kind)
    pixel_values = {name: x for name, x in inputs.items() if name != "input_ids"}
    encode = "get_video_features" if kind == "video_llava" else "get_image_features"
    keys = list(host.state_dict())
    with torch.no_grad():
        before = getattr(host.model, encode)(**pixel_values).pooler_output
        apply_visionzip(host, **SMALL)
        assert list(host.state_dict()) == keys
        assert getattr(host.model, encode)(**pixel_values).pooler_output[0].shape != before[0].shape
        remove_visionzip(host)
        remove_visionzip(host)
        after = getattr(host.model, encode)(**pixel_values).pooler_output
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not set(vars(host.model)) & {"get_image_features", "get_video_features"}


@kinds
def test_applied_again_the_new_budget_holds(kind: str) -> None:
    host = apply_visionzip(apply_visionzip(model(kind), dominant=2, contextual=1), **SMALL)
    assert host.generate(**inputs_of(kind), max_new_tokens=1).shape[1] > 0


def test_a_copy_of_the_model_uses_its_own_tower() -> None:
    host = apply_visionzip(model("llava"), **SMALL)
    twin = copy.deepcopy(host)
    for parameter in host.parameters():
        parameter.data.fill_(torch.nan)
    with torch.no_grad():
        assert twin(**inputs_of("llava")).logits.isfinite().all()


def test_what_was_kept_can_be_asked_for_also_as_a_tuple() -> None:
    host, images = apply_visionzip(model("llava"), **SMALL), pixels(2)
    with torch.no_grad():
        outputs = host.get_image_features(images)
        expected = VisionZip(host.model.vision_tower, DOMINANT, CONTEXTUAL)(images)
        as_tuple = host.get_image_features(images, return_dict=False)
    assert torch.equal(outputs.visionzip.dominant, expected.dominant)
    assert torch.equal(as_tuple[0], expected.tokens)
    assert [rows.shape[0] for rows in outputs.pooler_output] == [COUNT, COUNT]


def test_the_calls_own_level_is_honoured() -> None:
    host, images = apply_visionzip(model("llava"), **SMALL), pixels(2)
    with torch.no_grad():
        kept = host.get_image_features(images, vision_feature_layer=2).visionzip
        expected = VisionZip(host.model.vision_tower, DOMINANT, CONTEXTUAL, level=2)(images)
    assert torch.equal(kept.tokens, expected.tokens)


@kinds
def test_efficient_tuning_trains_the_projector_alone(kind: str) -> None:
    host, inputs = apply_visionzip(model(kind), **SMALL), inputs_of(kind)
    trained = train_projector_only(host)
    host(**inputs, labels=inputs["input_ids"].clamp(max=7)).loss.backward()
    with_gradient = {name for name, parameter in host.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in host.named_parameters() if "multi_modal_projector" in name}
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


# Processors


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (24, 24), (100, 99)], ids=str)
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_the_processor_writes_as_many_placeholders_as_the_model_has_tokens(kind: str, size: tuple[int, int]) -> None:
    host, words = model(kind), processor(kind)
    before = words(images=[Image.new("RGB", size)], text="what is <image>", return_tensors="pt")
    apply_visionzip(host, words, **SMALL)
    pictures = [Image.new("RGB", size), Image.new("RGB", (24, 48))]
    inputs = words(images=pictures, text="what is <image> here <image>", return_tensors="pt")
    sizes = [(height, width) for width, height in (picture.size for picture in pictures)]
    counted = words._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    assert sum(counted) == (inputs["input_ids"] == IMAGE).sum()
    assert host.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    remove_visionzip(host, words)
    after = words(images=[Image.new("RGB", size)], text="what is <image>", return_tensors="pt")
    assert torch.equal(after["input_ids"], before["input_ids"])


def test_a_batch_of_texts_with_none_one_and_two_images_generates() -> None:
    host, words = model("llava_next"), processor("llava_next")
    apply_visionzip(host, words, **SMALL)
    pictures = [Image.new("RGB", (50, 30)), Image.new("RGB", (30, 50)), Image.new("RGB", (48, 48))]
    texts = ["what is", "what is <image>", "what is <image> here <image> here"]
    inputs = words(images=pictures, text=texts, padding=True, return_tensors="pt")
    assert host.generate(**inputs, max_new_tokens=2).shape == (3, inputs["input_ids"].shape[1] + 2)


def test_the_video_processor_counts_frames() -> None:
    host, words = model("video_llava"), processor("video_llava")
    apply_visionzip(host, words, **SMALL)
    videos = {"pixel_values_videos": pixels(5).unflatten(0, (1, 5))}
    assert words.replace_video_token(videos, video_idx=0) == "<video>" * (5 * COUNT)
    assert words.replace_image_token({}, image_idx=0) == "<image>" * COUNT


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_processor_is_saved_as_if_nothing_had_been_applied(kind: str) -> None:
    words = processor(kind)
    before = words.to_dict()
    apply_visionzip(model(kind), words, **SMALL)
    assert words.to_dict() == before


# Refusals


def test_other_models_are_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"a Linear of no known type; .* llava, llava_next, video_llava"):
        apply_visionzip(nn.Linear(2, 2))
    host = model("llava")
    host.model.config.model_type = "vipllava"
    for operation in (apply_visionzip, remove_visionzip, train_projector_only):
        with pytest.raises(ValueError, match=f"{operation.__name__}: .* of type 'vipllava'; it must be or hold one of"):
            operation(host)


def test_features_of_several_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vision_feature_layer is \[1, 2\]; it must be one level, and not several"):
        apply_visionzip(model("llava", vision_feature_layer=[1, 2]))


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    host = model("llava")
    with pytest.raises(
        TypeError, match="processor is a LlavaNextProcessor; a model of type 'llava' has a LlavaProcessor"
    ):
        apply_visionzip(host, processor("llava_next"))
    with pytest.raises(ValueError, match="dominant is 0"):
        apply_visionzip(host, dominant=0)
    assert "get_image_features" not in vars(host.model)
