"""What cannot be served rightly is refused, in one sentence that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models import _llava_vr as tiny
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRProcessor


def one_image(model: Any) -> dict[str, Tensor]:
    return tiny.inputs(tiny.processor(model.config), ["w1 <image> w2"], [tiny.image()])


@pytest.mark.parametrize("chunk", [8, 64], ids=["several parts", "one part"])
@pytest.mark.parametrize("guided", [True, False])
def test_a_prefill_in_parts(chunk: int, guided: bool) -> None:
    model = tiny.model(vr_text_guided=guided)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**one_image(model), max_new_tokens=2, prefill_chunk_size=chunk)


def test_a_prefill_in_parts_of_text_alone_is_none_of_these() -> None:
    model = tiny.model()
    inputs = tiny.inputs(tiny.processor(model.config), ["w1 w2 w3 w4 w5"], [])
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [tiny.IMAGE]}
    assert torch.equal(model.generate(**inputs, **options, prefill_chunk_size=2), model.generate(**inputs, **options))


@pytest.mark.parametrize("given", ["the whole dialogue", "what is new", "embeddings"])
def test_a_cache_that_another_question_guided(given: str) -> None:
    model = tiny.model()
    inputs = one_image(model)
    cache = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).past_key_values
    new = torch.tensor([[9, 10, 11]])
    ids = torch.cat([inputs["input_ids"], new], 1)
    mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.int64)
    calls: dict[str, dict[str, Any]] = {
        "the whole dialogue": {"input_ids": ids},
        "what is new": {"input_ids": new, "attention_mask": mask},
        "embeddings": {"inputs_embeds": model.get_input_embeddings()(ids)},
    }
    with pytest.raises(ValueError, match=r"goes on from a cache of .* tokens with images.*earlier prompt"):
        model.generate(**calls[given], past_key_values=cache, max_new_tokens=1)


def test_images_behind_a_cache() -> None:
    model = tiny.model()
    inputs = one_image(model)
    cache = model(input_ids=torch.tensor([[5, 6]]), use_cache=True).past_key_values
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (2, 0), value=1)
    with pytest.raises(ValueError, match="images come with a cache of 2 tokens; give prompt and images in one prefill"):
        model(**inputs, past_key_values=cache)


@pytest.mark.parametrize("packing", ["position_ids", "cu_seq_lens_q"])
def test_several_samples_packed_into_one_row(packing: str) -> None:
    model = tiny.model()
    inputs = one_image(model)
    length = inputs["input_ids"].shape[1]
    if packing == "position_ids":
        inputs[packing] = torch.cat([torch.arange(length - 2), torch.arange(2)])[None]
    else:
        inputs[packing] = torch.tensor([0, length - 2, length], dtype=torch.int32)
    with pytest.raises(ValueError, match="several samples are packed into one sequence; give one sample a row"):
        model(**inputs)


def test_positions_that_fall_in_the_padding_are_no_packing() -> None:
    model = tiny.model()
    inputs = tiny.inputs(tiny.processor(model.config), ["w1 <image> w2", "w3 w4"], [tiny.image()])
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        assert model(**inputs, position_ids=positions).logits.isfinite().all()


@pytest.mark.parametrize("call", ["forward", "get_image_features"])
def test_position_embeddings_of_another_size(call: str) -> None:
    model = tiny.model()
    inputs = one_image(model)
    if call == "get_image_features":
        inputs = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    with pytest.raises(ValueError, match="interpolate_pos_encoding is set; tiles must have the encoder's own size 24"):
        getattr(model, call)(**inputs, interpolate_pos_encoding=True)


@pytest.mark.parametrize("call", ["forward", "get_image_features"])
def test_other_levels_than_the_projector_was_built_for(call: str) -> None:
    model = tiny.model()
    inputs = one_image(model)
    if call == "get_image_features":
        inputs = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    with pytest.raises(ValueError, match="vision_feature_layer is -3 and the config's -2; set it in the config"):
        getattr(model, call)(**inputs, vision_feature_layer=-3)


@pytest.mark.parametrize("missing", [1, -1])
def test_another_number_of_placeholders_than_the_images_have(missing: int) -> None:
    model = tiny.model()
    inputs = one_image(model)
    ids = inputs["input_ids"]
    slots = int((ids == tiny.IMAGE).sum())
    ids[0, -1 if missing < 0 else 1] = tiny.IMAGE if missing < 0 else 5  # one more, or one less
    with pytest.raises(ValueError, match=f"the prompt has {slots - missing} image tokens and its images have {slots} "):
        model(**inputs)


def test_an_image_spread_over_two_samples() -> None:
    model = tiny.model()
    texts, images = ["w1 <image> w2", "w3 <image> w4"], [tiny.image(seed=0), tiny.image(seed=1)]
    inputs = tiny.inputs(tiny.processor(model.config), texts, images)
    inputs["input_ids"][0, 1], inputs["input_ids"][1, -1] = 5, tiny.IMAGE
    with pytest.raises(ValueError, match="image 0 has slots from sample 0 to 1; give each sample"):
        model(**inputs)


def test_anyres_without_sizes() -> None:
    model = tiny.model()
    inputs = one_image(model)
    del inputs["image_sizes"]
    with pytest.raises(ValueError, match="image_sizes is None; with AnyRes it must hold each image's height and width"):
        model(**inputs)


@pytest.mark.parametrize("shape", [(1, 4, 3, 24, 24), (2, 5, 3, 24, 24), (4, 3, 24, 24), (3, 24, 24)])
def test_other_tiles_than_the_sizes_ask_for(shape: tuple[int, ...]) -> None:
    model = tiny.model()
    inputs = one_image(model)
    assert inputs["pixel_values"].shape == (1, 5, 3, 24, 24)
    with pytest.raises(ValueError, match=r"pixel_values has shape .* by their sizes the 1 images have 5 tiles"):
        model(**(inputs | {"pixel_values": torch.randn(shape)}))


def test_pixels_beside_encoded_images() -> None:
    model = tiny.model()
    inputs = one_image(model)
    encoded = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    with pytest.raises(ValueError, match="pixel_values and mm_encoder_outputs are given; give one of them"):
        model(**inputs, mm_encoder_outputs={"image": encoded})


def test_a_mask_that_does_not_say_what_padding_is() -> None:
    model = tiny.model()
    inputs = one_image(model)
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="padding cannot be told from text; give prompt_mask"):
        model(**inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_type": "nothing"}, "projector_type is 'nothing'; it must be one of 'mlp', 'pool'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; it must be 'gelu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False; it must be True"),
        ({"image_grid_pinpoints": [[24, 50]]}, r"it must be pairs \(height, width\) of multiples of the tower's 24 p"),
        ({"image_grid_pinpoints": [[0, 24]]}, "image_grid_pinpoints"),
        ({"vr_position": "inside"}, "vr_position is 'inside'; it must be 'after' or 'before'"),
        ({"vr_layers": [6]}, "vr_layers has 6; it must be 1 to 5"),
        ({"vr_layers": [0]}, "vr_layers has 0; it must be 1 to 5"),
        ({"vr_layers": 1}, "vr_layers is 1; it must be a list of integers"),
        ({"vr_levels": ["a"]}, r"vr_levels is \['a'\]; it must be a list of integers"),
        ({"vr_levels": []}, r"vr_levels is \[\]; it must be at least one"),
        ({"vr_levels": [2, -3]}, r"vr_levels is \[2, 2\]; it must be .* none twice"),
        ({"vr_window": [3]}, r"vr_window is \[3\]; it must be two integers"),
        ({"vr_window": [2, 2, 2]}, r"vr_window is \[2, 2, 2\]; it must be two integers"),
        ({"vr_options": [1]}, r"vr_options is \[1\]; it must be a dictionary"),
        ({"vr_text_guided": "yes"}, "vr_text_guided is 'yes'; it must be True or False"),
        ({"vr_layer": [1]}, "'vr_layer' is no field; it must be one of vr_window, vr_layers"),
        ({"vr_saliency": "value", "vr_saliency_level": 0}, "vr_saliency_level is 0; it must be the number of a block"),
        ({"vision_feature_layer": "last"}, "vision_feature_layer is 'last'; it must be an integer or a list"),
        ({"image_grid_pinpoints": [24]}, r"image_grid_pinpoints is \[24\]; it must be pairs"),
        ({"vr_layers": [2, 2]}, "names a layer twice"),
        ({"vr_levels": [5]}, "vr_levels has 5; an encoder of 4 blocks has hidden_states 0 to 4"),
        ({"vision_feature_layer": -6}, "vision_feature_layer has -6"),
        ({"vr_saliency": "value", "vr_saliency_level": 7}, "vr_saliency_level has 7"),
        ({"vr_interaction": "none"}, "interaction is 'none'; it must be 'local' or 'global' or 'deformable'"),
        ({"vr_options": {"nonsense": 1}}, "nonsense"),
        ({"projector_type": "concat", "vr_window": [4, 4]}, "multiples of the window"),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(**changes)


def test_pinpoints_of_any_multiples_of_the_tower_fit() -> None:
    assert tiny.config(image_grid_pinpoints=[[336, 672]]).image_grid_pinpoints == [[336, 672]]  # 14 and 28 times 24


def test_an_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset is 'v3'; it must be 'v1' or 'v2'"):
        LlavaVRConfig.preset("v3")


def test_a_processor_without_a_grid() -> None:
    with pytest.raises(ValueError, match=r"token_grid is None; it must be the config's token_grid \[n_h, n_w\]"):
        LlavaVRProcessor(tiny.processor(tiny.config()).image_processor, tiny.tokenizer())


def test_a_baseline_needs_no_levels_that_its_encoder_has() -> None:
    default = {"vr_levels": [7, 15, 23], "vr_options": {}}
    assert tiny.model(vr_layers=[], **default).config.vr_layers == []
    with pytest.raises(ValueError, match="LlavaVRConfig: vr_levels has 7; an encoder of 4 blocks"):
        tiny.config(vr_layers=[1], **default)
