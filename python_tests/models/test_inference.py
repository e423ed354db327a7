"""``Assistant``: prompts answered and answers scored, for our model and for a stock one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.models import _folders, _llava_vr
from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import user_message

PROMPTS = [("w1 w2", 1), ("w3 <image> w4 <image> w5", 2), ("w6 w7", 0)]
SAVED = {"llava_vr": _folders.save_llava_vr, "llava_next": _folders.save_llava_next}


@pytest.fixture(scope="module", params=list(SAVED))
def assistant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return Assistant.load(SAVED[request.param](tmp_path_factory.mktemp(request.param)))


def batch(numbers: list[int]) -> tuple[list[list[dict[str, Any]]], list[list[Any]]]:
    images = iter([_llava_vr.image(40, 60, 0), _llava_vr.image(70, 30, 1), _llava_vr.image(30, 30, 2)])
    of_prompts = [[next(images) for _ in range(count)] for _, count in PROMPTS]
    return [[user_message(*PROMPTS[i])] for i in numbers], [of_prompts[i] for i in numbers]


def test_a_batch_is_answered_as_each_prompt_alone(assistant: Assistant) -> None:
    together = assistant.generate(assistant.inputs(*batch([0, 1, 2])), max_new_tokens=5, do_sample=False)
    alone = [assistant.generate(assistant.inputs(*batch([i])), max_new_tokens=5, do_sample=False)[0] for i in range(3)]
    assert together == alone
    assert all(len(answer.split()) == 5 for answer in alone)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_score_is_that_of_each_token_after_the_ones_before_it(assistant: Assistant, number: int) -> None:
    """The definition, token by token, each with the answer's beginning in the prompt."""
    messages, images = batch([number])
    answer = ["w9", "w2", "w11"]
    inputs = assistant.inputs(messages, images)
    is_prompt = inputs["attention_mask"].bool()
    guided = {"prompt_mask": is_prompt} if assistant.model.config.model_type == "llava_vr" else {}
    expected = []
    for token in assistant.tokenizer.convert_tokens_to_ids(answer):
        with torch.no_grad():
            expected.append(-assistant.model(**inputs, **guided).logits[0, -1].log_softmax(-1)[token])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], 1)
        if guided:
            guided["prompt_mask"] = torch.cat([guided["prompt_mask"], torch.zeros(1, 1, dtype=torch.bool)], 1)
    loss, greedy = assistant.score(messages[0], images[0], " ".join(answer))
    assert loss == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert not greedy


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_greedy_answer_is_known_as_such(assistant: Assistant, number: int) -> None:
    messages, images = batch([number])
    (answer,) = assistant.generate(assistant.inputs(messages, images), max_new_tokens=4, do_sample=False)
    assert assistant.score(messages[0], images[0], answer)[1]
    first, *others = answer.split()
    other = "w1" if first != "w1" else "w2"
    assert not assistant.score(messages[0], images[0], " ".join([other, *others]))[1]


def test_an_answer_to_nothing_begins_behind_the_token_that_begins_a_text() -> None:
    model = _llava_vr.model()
    processor = _llava_vr.processor(model.config)
    expected = []
    for first in ("w8", "<eos>"):  # the tokenizer's, or where it has none the end of a text
        processor.tokenizer.bos_token = "w8" if first == "w8" else None
        ids = torch.tensor([processor.tokenizer.convert_tokens_to_ids([first, "w5"])])
        with torch.no_grad():
            expected.append(-model(ids).logits[0, 0].log_softmax(-1)[ids[0, 1]].item())
        loss, _ = Assistant(model, processor).score([user_message("", 0)], [], "w5")
        assert loss == pytest.approx(expected[-1], rel=1e-5)
    assert expected[0] != pytest.approx(expected[1])


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_an_answer_has_the_tokens_that_follow_the_prompt(joined: bool) -> None:
    """Llama's tokenizer begins a text with a space, and so an answer that it is given by itself."""
    import tokenizers

    model = _llava_vr.model()
    processor = _llava_vr.processor(model.config)
    vocabulary = {word: number for number, word in enumerate([*_llava_vr.WORDS[:4], "▁w1", "\n", "w5", "▁w5", "\nw5"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first"),
            tokenizers.pre_tokenizers.Split("\n", "merged_with_next" if joined else "isolated"),
        ]
    )
    processor.tokenizer._tokenizer = words
    processor.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    ids = torch.tensor([[vocabulary[word] for word in ("▁w1", "\n", "▁w5" if joined else "w5")]])
    with torch.no_grad():
        expected = -model(ids).logits[0, 1].log_softmax(-1)[ids[0, 2]].item()
    loss, _ = Assistant(model, processor).score([user_message("w1", 0)], [], "w5")
    assert loss == pytest.approx(expected, rel=1e-5)


def test_an_answer_without_tokens_is_refused(assistant: Assistant) -> None:
    messages, images = batch([0])
    with pytest.raises(ValueError, match="the answer '' has no tokens"):
        assistant.score(messages[0], images[0], "")


def test_weights_come_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    assistant = Assistant.load(_folders.save_llava_vr(tmp_path), dtype="bfloat16")
    inputs = assistant.inputs(*batch([0]))
    assert assistant.model.dtype == inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("template", [None, "{{ bos_token }} {{ messages[0]['content'] }}"], ids=["none", "bos"])
def test_the_first_token_stands_once(template: str | None) -> None:
    from tokenizers.processors import TemplateProcessing

    model = _llava_vr.model()
    processor = _llava_vr.processor(model.config)
    words, first = processor.tokenizer, "w8"
    words.bos_token, words.chat_template = first, template
    number = words.convert_tokens_to_ids(first)
    words._tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, number)])
    inputs = Assistant(model, processor).inputs([[user_message("w1", 0)]], [[]])
    assert words.convert_ids_to_tokens(inputs["input_ids"][0]) == ["w8", "w1"]


def test_an_image_comes_in_rgb(tmp_path: Path) -> None:
    _llava_vr.image().convert("LA").save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").mode == "RGB"


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    from PIL import Image

    orientation, quarter_turn = 0x0112, 6
    exif = Image.Exif()
    exif[orientation] = quarter_turn
    _llava_vr.image(40, 60).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (40, 60)
