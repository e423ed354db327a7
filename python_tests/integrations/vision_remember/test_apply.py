"""Patching and what survives it: removal, copies, pickles, adapters of the call, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels import apply_vision_remember, apply_visionzip, remove_vision_remember
from vr_kernels.integrations.vision_remember.apply import _levels

each_family = pytest.mark.parametrize("kind", tiny.KINDS)


def traces(model: nn.Module) -> list[Any]:
    """Everything by which a patch could still be there."""
    return [
        (name, type(module), sorted(vars(module)), *(len(found) for found in vars(module).values() if hooks(found)))
        for name, module in model.named_modules()
    ]


def hooks(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, int) for key in value)


@each_family
def test_removal_leaves_nothing_behind(kind: str) -> None:
    model = tiny.model(kind)
    inputs = tiny.batch(model, kind, [[0], []])
    expected, before, weights = model(**inputs).logits, traces(model), list(model.state_dict())
    apply_vision_remember(model, layers=(1, 2), levels=(1, 2), num_heads=4)
    tiny.randomise_blocks(model)
    assert not torch.equal(model(**inputs).logits, expected)
    assert remove_vision_remember(model) is model
    assert traces(model) == before
    assert list(model.state_dict()) == weights
    assert torch.equal(model(**inputs).logits, expected)
    remove_vision_remember(model)  # again: nothing to do


def test_removal_from_the_inner_model_first_leaves_nothing_behind_either() -> None:
    model = tiny.model("llava")
    model(**tiny.batch(model, "llava", [[]]))  # in which transformers adds hooks of its own
    before = traces(model)
    apply_vision_remember(model, layers=(1,), levels=(1, 2), num_heads=4)
    remove_vision_remember(model.model)
    remove_vision_remember(model)
    assert traces(model) == before


@each_family
def test_keys_of_the_host_stay_and_new_ones_are_named_for_the_blocks(kind: str) -> None:
    old, new = set(tiny.model(kind).state_dict()), set(tiny.patched(kind).state_dict())
    assert old <= new
    prefixes = tuple(f"model.language_model.layers.{number - 1}.vision_remember." for number in tiny.LAYERS)
    assert all(name.startswith(prefixes) for name in new - old)


@each_family
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_runs_its_own_blocks(kind: str, duplicate: Callable[[Any], Any]) -> None:
    model = tiny.patched(kind)
    twin = duplicate(model)  # before the first pass, in which transformers adds hooks that no pickle takes
    inputs = tiny.batch(model, kind, [[0], []])
    expected, tokens = model(**inputs).logits, tiny.generate(model, inputs)
    remove_vision_remember(model)
    assert torch.equal(twin(**inputs).logits, expected)
    assert torch.equal(tiny.generate(twin, inputs), tokens)


def test_before_a_layer_is_after_the_one_above() -> None:
    after, before = tiny.patched("llava_next"), tiny.patched("llava_next", layers=(2, 4), position="before")
    inputs = tiny.batch(after, "llava_next", [[0], [1]])
    assert torch.equal(after(**inputs).logits, before(**inputs).logits)


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl"])  # half a minute for all of them
@torch.no_grad()
def test_the_decoder_compiles_in_one_graph(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0], []])
    expected = model(**inputs).logits
    torch.compiler.reset()
    model.model.language_model.compile(backend="eager", fullgraph=True)
    assert torch.equal(model(**inputs).logits, expected)


@each_family
def test_the_model_without_its_head_can_be_patched_alone(kind: str) -> None:
    whole = tiny.patched(kind)
    inputs = tiny.batch(whole, kind, [[0], []])
    inner = apply_vision_remember(tiny.model(kind).model, layers=tiny.LAYERS, levels=(1, 2), num_heads=4)
    tiny.randomise_blocks(inner)
    assert torch.equal(inner(**inputs).last_hidden_state, whole.model(**inputs).last_hidden_state)


@each_family
def test_a_prompt_mask_says_what_labels_say(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]], text=6)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    supervised, masked = model(**inputs, labels=labels), model(**inputs, prompt_mask=labels == -100)
    assert torch.equal(supervised.logits, masked.logits)
    assert not torch.equal(model(**inputs).logits, masked.logits)


@pytest.mark.parametrize("whole", [True, False])
def test_training_without_a_word_of_the_prompt_is_warned_of(whole: bool) -> None:
    """A Trainer that smooths labels takes them out of the batch; a patched inner model never sees them."""
    model = tiny.model("llava").train()
    apply_vision_remember(model if whole else model.model, layers=(1,), levels=(1, 2), num_heads=4)
    inputs = tiny.batch(model, "llava", [[0]])
    labels = {} if whole else {"labels": inputs["input_ids"]}
    with pytest.warns(UserWarning, match=r"neither labels nor prompt_mask, .*; give prompt_mask \(B, T\)"):
        model(**inputs, **labels)
    model(**inputs, **labels, prompt_mask=inputs["attention_mask"].bool()).logits.sum().backward()
    model.model(**tiny.batch(model, "llava", [[]]))  # without an image nobody reads the text
    with torch.no_grad():
        model(**inputs)


def test_embeddings_in_the_place_of_ids_find_their_images() -> None:
    model = tiny.patched("llava_next")
    inputs = tiny.batch(model, "llava_next", [[0]])
    embedded = {name: value for name, value in inputs.items() if name != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(model(**embedded).logits, model(**inputs).logits)


def test_arguments_may_come_by_position() -> None:
    model = tiny.patched("llava_next")
    inputs = tiny.batch(model, "llava_next", [[0]])
    by_position = model(*(inputs[name] for name in ("input_ids", "pixel_values", "image_sizes", "attention_mask")))
    assert torch.equal(by_position.logits, model(**inputs).logits)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("saliency", ["value", "feature"])
def test_saliency_comes_from_the_tower(tower: str, saliency: str) -> None:
    options: dict[str, Any] = {"layers": (1,), "levels": (1, 2), "num_heads": 4}
    strategy = "default" if tower == "clip" else "full"
    logits = []
    for choice in ("none", saliency):
        model = tiny.model("llava_next", tower=tower, vision_feature_select_strategy=strategy)
        tiny.randomise_blocks(apply_vision_remember(model, saliency=choice, **options))
        inputs = tiny.batch(model, "llava_next", [[0], []])
        logits.append(model(**inputs).logits)
        assert len(tiny.generate(model, inputs, num_beams=2)) == 2
    moved = (logits[0] - logits[1]).abs().amax((1, 2))
    assert moved[0] > 1e-3
    assert moved[1] == 0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_saliency_of_a_tower_in_another_precision_is_read(precision: torch.dtype) -> None:
    """The projector converts what the decoder gets; nobody does so for the blocks."""
    model = tiny.patched("llava", layers=(1,), saliency="value")
    inputs = tiny.batch(model, "llava", [[0]])
    expected = model(**inputs).logits
    model.to(precision)
    inner = model.model
    inner.vision_tower.bfloat16()
    inner.multi_modal_projector.register_forward_pre_hook(lambda module, args: (args[0].to(precision),))
    torch.testing.assert_close(model(**inputs).logits.float(), expected, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_model_on_several_devices_carries_its_features_along(kind: str) -> None:
    """As ``device_map="auto"``: accelerate's hooks make every output anew that passes them."""
    accelerate = pytest.importorskip("accelerate")
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0, 1], []])
    options: list[dict[str, Any]] = [{}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2}]
    logits, tokens = model(**inputs).logits, [tiny.generate(model, inputs, **given) for given in options]
    model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    assert torch.equal(model(**inputs).logits, logits)
    for given, expected in zip(options, tokens, strict=True):
        assert torch.equal(tiny.generate(model, inputs, **given), expected)


def test_levels_lie_where_the_paper_has_them() -> None:
    assert _levels(None, 24) == (7, 15, 23)
    assert _levels(None, 32) == (9, 20, 31)
    assert _levels(None, 1) == (1,)
    assert _levels((-1, 0), 24) == (24, 0)


REFUSALS = [
    ({"layers": ()}, "layers is empty"),
    ({"layers": (5,)}, r"layers has 5; it must be 1 to 4"),
    ({"layers": (1, 1)}, "names a layer twice"),
    ({"position": "beside"}, "'after' or 'before'"),
    ({"levels": (4,)}, r"levels has 4; an encoder of 3 blocks has hidden_states 0 to 3"),
    ({"levels": (3, -1)}, "none twice"),
    ({"levels": ()}, "at least one"),
    ({"neighborhood": (1, -1)}, r"two integers \(r_h, r_w\)"),
    ({"neighborhood": (1, 1, 1)}, r"two integers \(r_h, r_w\)"),
    ({"interaction": "global"}, "interaction is 'global'; it must be 'local'"),
    ({"saliency": "value"}, "no CLIP or SigLIP tower"),
    ({"feature_dims": (3,)}, "feature_dims is given"),
    ({"residual": "nothing"}, "residual is 'nothing'"),
    ({"wrong": 1}, "'wrong' is no field"),
    ({"backend": "nope"}, "apply_vision_remember: backend is 'nope'; it must be None or one of cpu"),
    ({"backend": "nope", "literal": True, "num_heads": None}, "apply_vision_remember: backend is 'nope'; it must be"),
    ({"backend": ["cpu"]}, r"apply_vision_remember: backend is \['cpu'\]; it must be None or one of cpu"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_a_refusal_leaves_the_model_as_it_was(options: dict[str, Any], message: str) -> None:
    model = tiny.model("qwen2_vl")
    before = traces(model)
    with pytest.raises(ValueError, match=message):
        apply_vision_remember(model, **({"levels": (1, 2), "num_heads": 4} | options))
    assert traces(model) == before


@pytest.mark.parametrize("options", [{"layers": 1}, {"levels": 2}, {"neighborhood": 1}])
def test_numbers_in_the_place_of_sequences_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=rf"{name} is {options[name]}; it must be a tuple or a list of int"):
        apply_vision_remember(tiny.model("qwen2_vl"), num_heads=4, **options)


@pytest.mark.parametrize("form", ["width", "dtype"])
def test_a_prompt_mask_of_another_form_is_refused(form: str) -> None:
    model = tiny.patched("llava")
    inputs = tiny.batch(model, "llava", [[0]])
    mask = inputs["attention_mask"] if form == "dtype" else inputs["attention_mask"].bool().repeat(1, 2)
    with pytest.raises(ValueError, match=r"prompt_mask .* must be \(B, T\)"):
        model(**inputs, prompt_mask=mask)


def test_models_of_other_types_are_refused_with_the_list() -> None:
    import transformers as hf

    bert = hf.BertModel(hf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match=r"BertModel of no known type.*internvl, llava, llava_next, .*qwen3_vl"):
        apply_vision_remember(bert)
    with pytest.raises(TypeError, match=r"a dict; it must be a torch\.nn\.Module"):
        apply_vision_remember({})  # type: ignore[type-var]
    other = tiny.model("llava")
    other.model.config.model_type = "new_model"
    with pytest.raises(ValueError, match="of type 'new_model'"):
        apply_vision_remember(other)


def test_a_model_is_patched_once_and_not_over_visionzip() -> None:
    with pytest.raises(ValueError, match="has blocks already"):
        apply_vision_remember(tiny.patched("llava"), num_heads=4)
    with pytest.raises(ValueError, match="get_image_features was replaced"):
        apply_vision_remember(apply_visionzip(tiny.model("llava"), dominant=3, contextual=1), num_heads=4)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_videos_are_refused(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[]])
    with pytest.raises(ValueError, match="gets a video"):
        model(**inputs, pixel_values_videos=torch.zeros(1))


@each_family
def test_an_image_on_top_of_a_cache_is_refused(kind: str) -> None:
    model = tiny.patched(kind)
    cache = model(**tiny.batch(model, kind, [[]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="come with a cache of 3 tokens"):
        model(**tiny.batch(model, kind, [[0]]), past_key_values=cache)


@pytest.mark.parametrize(("kind", "axes"), [("llava", ()), ("qwen2_vl", (4,)), ("qwen3_vl", (3,))])
def test_packed_samples_are_refused(kind: str, axes: tuple[int, ...]) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]])
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(length).remainder(length - 3).expand(*axes, 1, length)
    with pytest.raises(ValueError, match="packed into one sequence"):
        model(**inputs, position_ids=positions)
