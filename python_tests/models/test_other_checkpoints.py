"""Weights of other models: LLaVA-NeXT in every layout its files ever had, LLaVA-OneVision, separate parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from python_tests.models import _llava_vr as tiny
from vr_kernels.compression.projectors import PROJECTORS
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRModel, LlavaVRProcessor

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


def tower_with_a_level_more(name: str) -> str:
    """As towers were named until transformers 5: below ``vision_model``."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def hub_layout(name: str) -> str:
    """llava-hf's files: each part at the top, the language model with its head."""
    name = tower_with_a_level_more(name).removeprefix("model.")
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.replace("language_model.", "language_model.model.", 1)


def authors_layout(name: str) -> str:
    """A language model that holds the rest."""
    name = tower_with_a_level_more(name).replace("model.vision_tower.", "model.vision_tower.vision_tower.", 1)
    name = name.replace("model.language_model.", "model.", 1)
    for i, place in ((1, 0), (2, 2)):
        name = name.replace(f"multi_modal_projector.linear_{i}", f"mm_projector.{place}")
    return name


LAYOUTS: dict[str, Callable[[str], str]] = {
    "today": str, "transformers 4.52": tower_with_a_level_more, "llava-hf": hub_layout, "authors": authors_layout,
}  # fmt: skip


@towers
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_llava_next_loads(layout: str, tower: str, tmp_path: Path) -> None:
    host = llava_next(tower)
    tensors = {LAYOUTS[layout](name): tensor for name, tensor in host.state_dict().items()}
    write(tmp_path, host.config.to_dict(), tensors)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **UNCOMPRESSED, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = inputs_of(model.config)
    assert torch.equal(logits(model, inputs), logits(host, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_came_from_an_older_layout_is_saved_under_todays_names(layout: str, tmp_path: Path) -> None:
    host = llava_next()
    write(tmp_path, host.config.to_dict(), {LAYOUTS[layout](n): t for n, t in host.state_dict().items()})
    model = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR)
    model.save_pretrained(tmp_path / "again")
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_authors_files_load_with_a_config_of_ours(tmp_path: Path) -> None:
    """Their own config is the language model's, with the tower as a name."""
    host = llava_next()
    flat = host.config.text_config.to_dict() | {"model_type": "llava_llama", "mm_vision_tower": "some/tower"}
    write(tmp_path, flat, {authors_layout(name): tensor for name, tensor in host.state_dict().items()})
    config = LlavaVRConfig.from_llava_next(host.config, **UNCOMPRESSED)
    model = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, config=config)
    inputs = inputs_of(config)
    assert torch.equal(logits(model, inputs), logits(host, inputs))


def test_the_layouts_differ() -> None:
    names = llava_next().state_dict()
    assert len({frozenset(map(layout, names)) for layout in LAYOUTS.values()}) == len(LAYOUTS)


def test_the_base_model_loads_from_llava_next(tmp_path: Path) -> None:
    host = llava_next()
    write(tmp_path, host.config.to_dict(), {hub_layout(name): tensor for name, tensor in host.state_dict().items()})
    base, info = LlavaVRModel.from_pretrained(tmp_path, **UNCOMPRESSED, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(base.image_newline, host.model.image_newline)


def test_blocks_that_llava_next_lacks_are_new_and_named(tmp_path: Path) -> None:
    host = llava_next()
    host.save_pretrained(tmp_path)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, output_loading_info=True)
    finally:
        logger.removeHandler(handler)
    assert info["missing_keys"] == {name for name in model.state_dict() if ".vision_remember." in name}
    assert any("vision_remember" in line and "MISSING" in line for line in lines)
    plain = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, vr_layers=[])
    inputs = inputs_of(model.config)
    assert torch.equal(logits(model, inputs), logits(plain, inputs))


@pytest.mark.parametrize("projector", PROJECTORS)
def test_of_another_projector_what_fits_is_taken_and_the_rest_is_new(projector: str, tmp_path: Path) -> None:
    host = llava_next()
    host.save_pretrained(tmp_path)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(
        tmp_path,
        **VR,
        vr_layers=[],
        projector_type=projector,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    assert all("projector" in name for name in new)
    assert bool(new) == (projector not in ("mlp", "pool"))
    fresh = model.config.projector().state_dict()
    for name, tensor in model.model.multi_modal_projector.state_dict().items():
        whole = f"model.multi_modal_projector.{name}"
        if whole in new:  # of the size that a new one has, whatever was in memory
            assert tensor.isfinite().all()
            assert tensor.abs().max() <= 2 * fresh[name].abs().max() + 1e-6, name
            assert tensor.count_nonzero() > 0 or fresh[name].count_nonzero() == 0, name
        else:
            assert torch.equal(tensor, host.state_dict()[whole])


def test_a_projector_of_another_shape_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    llava_next().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, projector_type="concat")


def test_llava_onevision_gives_its_weights(tmp_path: Path) -> None:
    own = tiny.config("siglip")
    config = LlavaOnevisionConfig(
        vision_config=own.vision_config, text_config=own.text_config, image_token_index=tiny.IMAGE,
        video_token_index=4, image_grid_pinpoints=tiny.PINPOINTS,
    )  # fmt: skip
    host = tiny.randomise(LlavaOnevisionForConditionalGeneration(config)).eval()
    host.save_pretrained(tmp_path)
    model, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, **VR, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if ".vision_remember." in name}
    assert not info["unexpected_keys"]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in host.state_dict().items())
    assert model.config.vision_feature_layer == config.vision_feature_layer
    assert not hasattr(model.config, "vision_aspect_ratio")  # features are never interpolated here
    inputs = inputs_of(model.config)
    assert logits(model, inputs).isfinite().all()


# Separate parts.


def parts(tower: str, decoder: str = "qwen2") -> tuple[Any, Any]:
    from transformers import AutoModel, AutoModelForCausalLM

    config = tiny.config(tower, decoder)
    vision = tiny.randomise(AutoModel.from_config(config.vision_config), seed=1)
    return vision, tiny.randomise(AutoModelForCausalLM.from_config(config.text_config), seed=2)


CHANGES: dict[str, Any] = VR | {"image_token_index": tiny.IMAGE, "image_grid_pinpoints": tiny.PINPOINTS}


@pytest.mark.parametrize("decoder", tiny.DECODERS)
@towers
def test_a_model_of_two_folders_has_their_weights(tower: str, decoder: str, tmp_path: Path) -> None:
    vision, text = parts(tower, decoder)
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(
        vision=tmp_path / "vision", text=tmp_path / "text", **CHANGES
    )
    assert all(torch.equal(t, model.model.vision_tower.state_dict()[n]) for n, t in vision.state_dict().items())
    decoder_state = model.model.language_model.state_dict()
    assert all(torch.equal(t, decoder_state[n]) for n, t in text.base_model.state_dict().items())
    assert torch.equal(model.lm_head.weight, text.lm_head.weight)
    assert not any(parameter.is_meta or not parameter.isfinite().all() for parameter in model.parameters())


def test_a_model_of_parts_saves_loads_and_generates(tmp_path: Path) -> None:
    vision, text = parts("siglip")
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, **CHANGES)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = inputs_of(model.config)
    assert torch.equal(logits(model, inputs), logits(loaded, inputs))
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [tiny.IMAGE]}
    assert torch.equal(model.generate(**inputs, **options), loaded.generate(**inputs, **options))


def test_a_model_of_parts_answers_text_as_its_language_model_does() -> None:
    vision, text = parts("clip", "llama")
    ids = torch.tensor([[5, 6, 7]])
    expected = logits(text, {"input_ids": ids})
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, **CHANGES)
    assert torch.equal(logits(model, {"input_ids": ids}), expected)


def test_the_tower_is_taken_out_of_a_checkpoint_with_a_text_encoder(tmp_path: Path) -> None:
    vision_config = tiny.config("clip").vision_config
    text_config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = tiny.randomise(CLIPModel(CLIPConfig(vision_config=vision_config.to_dict(), text_config=text_config)))
    clip.save_pretrained(tmp_path)
    state = clip.vision_model.state_dict()
    for vision in (tmp_path, clip):
        _, text = parts("clip")
        model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, **CHANGES)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.vision_tower.state_dict().items())


def tokenizer_without_an_image() -> PreTrainedTokenizerFast:
    import tokenizers

    known = {word: i for i, word in enumerate(word for word in tiny.WORDS if word != "<image>")}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


@pytest.mark.parametrize("rows", [31, 32, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_a_tokenizer_learns_the_placeholder_and_the_embeddings_grow(rows: int, tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    vision, _ = parts("siglip")
    text_config = tiny.config().text_config
    text_config.vocab_size, text_config.tie_word_embeddings = rows, tied
    text, tokenizer = Qwen2ForCausalLM(text_config), tokenizer_without_an_image()
    old = text.get_input_embeddings().weight.detach().clone()
    changes = {name: value for name, value in CHANGES.items() if name != "image_token_index"}
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, tokenizer=tokenizer, **changes)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") == 31
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == model.config.text_config.vocab_size == max(rows, 32)
    assert torch.equal(embeddings[:rows], old)
    assert (model.lm_head.weight is embeddings) == tied
    processor = LlavaVRProcessor.from_config(model.config, tokenizer)
    inputs = tiny.inputs(processor, ["w1 <image> w2"], [tiny.image()])
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path), inputs), expected)


def test_embeddings_are_tied_where_the_config_is_told_so() -> None:
    vision, text = parts("siglip")
    assert text.lm_head.weight is not text.get_input_embeddings().weight
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, **CHANGES, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_dtype_holds_for_all_parts() -> None:
    vision, text = parts("siglip")
    model = LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, dtype=torch.bfloat16, **CHANGES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits(model, inputs_of(model.config)).dtype == torch.bfloat16


def test_parts_without_a_placeholder_are_refused() -> None:
    vision, text = parts("siglip")
    with pytest.raises(ValueError, match=r"from_pretrained_parts: tokenizer is None and no image_token_index is given"):
        LlavaVRForConditionalGeneration.from_pretrained_parts(vision, text, **VR)


def test_a_config_of_llava_next_becomes_one_of_ours() -> None:
    host = llava_next().config
    config = LlavaVRConfig.from_llava_next(host, **VR)
    assert type(config) is LlavaVRConfig
    assert config.model_type == "llava_vr"
    assert config.image_grid_pinpoints == host.image_grid_pinpoints
    assert LlavaVRConfig.from_llava_next(host.to_dict(), **VR).to_dict() == config.to_dict()
    assert isinstance(AutoConfig.for_model("llava_vr", **VR | {"vr_options": {}, "vr_layers": []}), LlavaVRConfig)
