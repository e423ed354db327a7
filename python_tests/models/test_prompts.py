"""Messages to text, by templates that take a message in parts, as one text, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from python_tests.models import _llava_vr
from vr_kernels.models.prompts import PromptWriter, user_message

PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else ' ' + p['text'] }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PRINTS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}"


def writer(template: str | None) -> PromptWriter:
    processor = _llava_vr.processor(_llava_vr.config())
    processor.chat_template = template
    return PromptWriter(processor)


def kinds(message: dict[str, Any]) -> list[str]:
    return [part.get("text", "<image>") for part in message["content"]]


def test_images_stand_first_where_the_prompt_does_not_place_them() -> None:
    assert kinds(user_message("w1 w2", 2)) == ["<image>", "<image>", "w1 w2"]


def test_images_stand_where_the_prompt_has_them() -> None:
    assert kinds(user_message("w1\n<image>\nw2 <image>", 2)) == ["w1", "<image>", "w2 ", "<image>"]


def test_no_text_is_no_part() -> None:
    assert kinds(user_message("", 1)) == ["<image>"]


@pytest.mark.parametrize(("prompt", "images"), [("<image> w1", 2), ("<image> <image>", 1), ("<image>", 0)])
def test_as_many_places_as_images(prompt: str, images: int) -> None:
    with pytest.raises(ValueError, match=f"{prompt.count('<image>')} times, and {images} images"):
        user_message(prompt, images)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PARTS, "user:<image> w1;assistant:"),
        (TEXT, "user: <image>\nw1;assistant: "),
        (None, "<image>\nw1"),
        (PRINTS, "user <image>\nw1"),  # it would print a list of parts as Python does
    ],
    ids=["parts", "text", "none", "prints"],
)
def test_every_kind_of_template_gets_what_it_reads(template: str | None, expected: str) -> None:
    assert writer(template).prompt([user_message("w1", 1)]) == expected


@pytest.mark.parametrize(("template", "expected"), [(PARTS, " w2"), (TEXT, "w2"), (None, " w2 "), (PRINTS, " w2 ")])
def test_an_answer_is_what_the_template_adds_up_to_its_last_letter(template: str | None, expected: str) -> None:
    written = writer(template)
    if template == PRINTS:  # writes the turn's name before the answer, and no beginning of a turn in the prompt
        expected = "assistant w2"
    assert written.answer([user_message("w1", 1)], " w2 ") == expected


def test_the_tokenizers_template_serves_where_the_processor_has_none() -> None:
    processor = _llava_vr.processor(_llava_vr.config())
    processor.tokenizer.chat_template = TEXT
    assert PromptWriter(processor).prompt([user_message("w1", 0)]) == "user: w1;assistant: "


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    refusing = "{% if messages[0]['role'] != 'system' and messages|length > 0 and messages[0]['content'] is string %}"
    refusing += "{{ raise_exception('a system prompt comes first') }}{% endif %}"
    with pytest.raises(ValueError, match="refuses the prompt: a system prompt comes first"):
        writer(refusing).prompt([user_message("w1", 0)])
