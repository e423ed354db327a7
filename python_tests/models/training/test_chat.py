"""What is supervised: what the assistant says and the end of its turn, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from python_tests.models import _llava_vr
from python_tests.models.training import _tiny
from vr_kernels.models.inference import Assistant
from vr_kernels.models.llava_vr import LlavaVRProcessor
from vr_kernels.models.prompts import PromptWriter
from vr_kernels.models.training import TEMPLATES, ChatEncoder, to_messages
from vr_kernels.models.training.templates import end_of_turn, find_template

TURNS = ["<image>\nWhat is it?", "A cat.", "Sure? <|im_end|> too?", "Très sûr."]
TAGGED = _tiny.CHATML.replace(
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}",
    "{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}"
    "{{'\\n'}}",
)


def conversation(turns: list[str], images: int = 1) -> tuple[list[Any], list[Any]]:
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
    messages, names = to_messages({"image": ["a.png"] * images, "conversations": said})
    return messages, [Image.new("RGB", (40, 30)) for _ in names]


def texts(encoder: ChatEncoder, sample: dict[str, Any]) -> tuple[str, list[str]]:
    """The whole, with one placeholder an image, and each supervised run."""
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    decode = encoder.tokenizer.decode
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    whole = [token for place, token in enumerate(ids) if token != 1 or place == 0 or ids[place - 1] != 1]
    return decode(whole), [decode(run) for run in runs if run]


@pytest.mark.parametrize("chat_template", [_tiny.CHATML, TAGGED], ids=["without tags", "with tags"])
def test_only_the_answers_of_a_conversation_are_supervised(chat_template: str) -> None:
    encoder = ChatEncoder(_tiny.processor(chat_template))
    whole, supervised = texts(encoder, encoder(*conversation(TURNS)))
    assert supervised == ["A cat.<|im_end|>", "Très sûr.<|im_end|>"]
    assert whole == (
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nSure? <|im_end|> too?<|im_end|>\n<|im_start|>assistant\nTrès sûr.<|im_end|>\n"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_begins_with_the_tokens_that_answering_begins_with(name: str) -> None:
    processor = _tiny.processor(TEMPLATES[name])
    processor.tokenizer.bos_token = "<|im_start|>"  # of Llama's kind, for which Qwen2's tokenizer has none
    messages, images = conversation(TURNS[:2])
    trained = ChatEncoder(processor)(messages, images)["input_ids"]
    prompt = PromptWriter(processor).prompt(messages[:1])
    asked = processor(text=[prompt], images=images, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    assert trained[0] == processor.tokenizer.bos_token_id
    assert torch.equal(trained[: len(asked)], asked)


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"], ids=["the tokenizer's", "the template's"])
@pytest.mark.parametrize("chat_template", [_tiny.CHATML, "  " + TAGGED], ids=["without tags", "with tags"])
def test_the_token_that_begins_a_text_stands_once_in_training_as_in_answering(chat_template: str, bos: str) -> None:
    from tokenizers.processors import TemplateProcessing

    processor = _tiny.processor(bos + chat_template)
    words = processor.tokenizer
    words.bos_token = "<pad>"
    words._tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    messages, images = conversation(TURNS[:2])
    trained = (encoder := ChatEncoder(processor))(messages, images)
    asked = Assistant(_tiny.model(), processor).inputs([messages[:1]], [images])["input_ids"][0]
    assert (asked == 0).nonzero().tolist() == [[0]]
    assert torch.equal(trained["input_ids"][: len(asked)], asked)
    assert texts(encoder, trained)[1] == ["A cat.<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "whole", "supervised"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat is it?"
            "<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n",
            "A cat.<|im_end|>",
        ),
        (
            "vicuna",
            "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the human's questions. USER: <image>\nWhat is it? ASSISTANT: "
            "A cat.<|im_end|>",
            " A cat.<|im_end|>",
        ),
        ("plain", "<image>A cat.<|im_end|>", "A cat.<|im_end|>"),
    ],
)
def test_our_own_templates_write_what_llava_writes(name: str, whole: str, supervised: str) -> None:
    encoder = ChatEncoder(_tiny.processor(None), template=TEMPLATES[name])
    assert texts(encoder, encoder(*conversation(TURNS[:2]))) == (whole, [supervised])


def test_a_tokenizer_without_the_token_that_ends_a_turn_is_refused() -> None:
    assert end_of_turn("chatml", _tiny.tokenizer()) == 3
    for name in ("vicuna", None):
        assert end_of_turn(name, _llava_vr.tokenizer()) is None
    with pytest.raises(
        ValueError, match=r"chat_template is 'chatml', which ends a turn with <\|im_end\|>; the tokenizer"
    ):
        end_of_turn("chatml", _llava_vr.tokenizer())


def test_the_prompt_of_generation_is_what_stood_before_the_answer() -> None:
    for template in TEMPLATES.values():
        encoder = ChatEncoder(_tiny.processor(None), template=template)
        messages, images = conversation(TURNS[:2])
        sample = encoder(messages, images)
        prompt = encoder.tokenizer.apply_chat_template(
            messages[:1], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        asked = encoder.processor(text=[prompt], images=images, add_special_tokens=False)["input_ids"][0]
        first = int((sample["labels"] != -100).nonzero()[0])
        assert sample["input_ids"][:first].tolist() == list(asked)


def test_images_have_as_many_tokens_as_the_processor_counts() -> None:
    encoder = ChatEncoder(_tiny.processor())
    messages, images = conversation(["<image>\nand <image>?", "No."], images=2)
    sample = encoder(messages, images)
    assert int((sample["input_ids"] == 1).sum()) == 2 * encoder.processor.count_image_tokens(30, 40)
    assert len(sample["pixel_values"]) == len(sample["image_sizes"]) == 2


def test_text_alone_has_no_pixels() -> None:
    encoder = ChatEncoder(_tiny.processor())
    assert set(encoder(*conversation(["Hello?", "Hello."], images=0))) == {"input_ids", "labels"}


def test_without_tiles_an_image_has_no_size() -> None:
    encoder = ChatEncoder(_tiny.processor(image_grid_pinpoints=[]))
    sample = encoder(*conversation(TURNS[:2]))
    assert sample["pixel_values"].shape == (1, 3, 24, 24)
    assert int((sample["input_ids"] == 1).sum()) == 4


def test_an_image_is_written_as_the_models_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiny, "SPECIAL", ["<pad>", "<picture>", *_tiny.SPECIAL[2:]])
    own = LlavaVRProcessor.from_config(_tiny.model().config, _tiny.tokenizer(), image_token="<picture>")
    whole, _ = texts(encoder := ChatEncoder(own), encoder(*conversation(TURNS[:2])))
    assert "<|im_start|>user\n<picture>\nWhat is it?<|im_end|>" in whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_own_templates_write_the_models_own_token_for_an_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiny, "SPECIAL", ["<pad>", "<picture>", *_tiny.SPECIAL[2:]])
    own = LlavaVRProcessor.from_config(_tiny.model().config, _tiny.tokenizer(None), image_token="<picture>")
    encoder = ChatEncoder(own, template=find_template(name, own.image_token))
    whole, _ = texts(encoder, encoder(*conversation(TURNS[:2])))
    assert whole.count("<picture>") == 1
    assert "<image>" not in whole


def test_what_follows_max_length_is_cut_off() -> None:
    whole = ChatEncoder(_tiny.processor())(*conversation(TURNS))
    length = len(whole["input_ids"]) - 30
    cut = ChatEncoder(_tiny.processor(), max_length=length)(*conversation(TURNS))
    assert cut["input_ids"].tolist() == whole["input_ids"][:length].tolist()
    assert cut["labels"].tolist() == whole["labels"][:length].tolist()


@pytest.mark.parametrize(
    ("max_length", "problem"),
    [(20, "max_length 20 cuts an image off"), (50, "none of its first 50 tokens")],
)
def test_a_length_that_leaves_nothing_to_learn_is_refused(max_length: int, problem: str) -> None:
    encoder = ChatEncoder(_tiny.processor(), max_length=max_length)
    with pytest.raises(ValueError, match=problem):
        encoder(*conversation(TURNS[:2]))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    kept = "(message['content'] if loop.last or message['role'] == 'user' else '...')"
    encoder = ChatEncoder(_tiny.processor(_tiny.CHATML.replace("message['content']", kept)))
    encoder(*conversation(["Hello?", "Hello."], images=0))
    with pytest.raises(ValueError, match="writes turn 1 differently once others follow it"):
        encoder(*conversation(["Hello?", "Hello.", "And?", "Bye."], images=0))


def test_a_model_without_a_template_needs_one_by_name() -> None:
    with pytest.raises(ValueError, match="neither processor nor tokenizer has a chat template"):
        ChatEncoder(_tiny.processor(None))
