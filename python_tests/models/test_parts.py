"""LLaVA-VR composed of an encoder and a language model that were trained apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from python_tests.models import _llava_vr as tiny
from python_tests.models._other_models import VR, inputs_of, logits, towers
from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration, LlavaVRProcessor


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
