"""What the guide of the bidirectional layer may read: the prompt, and never the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models import _llava_vr as tiny

ANSWER = 3  # tokens


def supervised(model: Any) -> dict[str, Tensor]:
    """Two samples whose last tokens are the answer."""
    inputs = tiny.inputs(
        tiny.processor(model.config),
        ["w1 <image> w2 w3 w4 w5", "w9 w8 <image> w6 w7 w3 w2 w1"],
        [tiny.image(seed=0), tiny.image(70, 30, seed=1)],
    )
    labels = inputs["input_ids"].clone()
    labels[:, :-ANSWER] = -100
    return inputs | {"labels": labels}


def logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def with_another_last_word(inputs: dict[str, Any]) -> dict[str, Any]:
    changed = inputs["input_ids"].clone()
    changed[:, -1] = tiny.WORDS.index("w20")
    return inputs | {"input_ids": changed}


@pytest.mark.parametrize("guide", ["max", "mean"])
@pytest.mark.parametrize("tower", tiny.TOWERS)
def test_with_labels_the_answer_changes_no_logit_before_it(tower: str, guide: str) -> None:
    model = tiny.model(tower, vr_options={"num_heads": 2, "text_guide": guide})
    inputs = supervised(model)
    before, after = logits(model, **inputs), logits(model, **with_another_last_word(inputs))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("guide", ["max", "mean"])
def test_an_answer_that_nobody_marks_leaks_into_earlier_logits(guide: str) -> None:
    """So the test above can fail."""
    model = tiny.model(vr_options={"num_heads": 2, "text_guide": guide})
    inputs = supervised(model)
    del inputs["labels"]
    before, after = logits(model, **inputs), logits(model, **with_another_last_word(inputs))
    assert not torch.equal(before[:, :-1], after[:, :-1])


def test_a_prompt_mask_marks_the_answer_as_labels_do() -> None:
    model = tiny.model()
    inputs = supervised(model)
    labels = inputs.pop("labels")
    assert torch.equal(logits(model, **inputs, prompt_mask=labels == -100), logits(model, **inputs, labels=labels))


def test_a_prompt_mask_stands_above_labels() -> None:
    model = tiny.model()
    inputs = supervised(model)
    everything = inputs["attention_mask"].bool()
    unmarked = logits(model, **{name: value for name, value in inputs.items() if name != "labels"})
    assert torch.equal(logits(model, **inputs, prompt_mask=everything), unmarked)


def test_only_text_before_the_first_supervised_token_is_prompt() -> None:
    """In a dialogue the second question stands behind the first answer."""
    model = tiny.model()
    inputs = supervised(model)
    inputs["labels"][:, -1] = -100
    first_answer = inputs["labels"][:, -ANSWER:] != -100
    assert first_answer.tolist() == 2 * [[True, True, False]]
    before, after = logits(model, **inputs), logits(model, **with_another_last_word(inputs))
    assert torch.equal(before[:, :-1], after[:, :-1])


def test_a_prompt_without_text_has_no_guide() -> None:
    """The alignment phase: image and caption alone."""
    guided = tiny.model()
    unguided = tiny.model(vr_text_guided=False)
    unguided.load_state_dict(guided.state_dict())
    inputs = tiny.inputs(tiny.processor(guided.config), ["<image> w1 w2"], [tiny.image()])
    labels = torch.where(inputs["input_ids"] == tiny.IMAGE, -100, inputs["input_ids"])
    caption = inputs | {"labels": labels}
    assert torch.equal(logits(guided, **caption), logits(unguided, **caption))
    assert not torch.equal(logits(guided, **inputs), logits(unguided, **inputs))  # the words as a prompt would guide


def test_padding_is_no_text() -> None:
    model = tiny.model()
    processor = tiny.processor(model.config)
    alone = tiny.inputs(processor, ["w1 <image> w2"], [tiny.image()])
    padded = tiny.inputs(processor, ["w1 <image> w2", "w1 w2 w3 w4 w5 <image> w6 w7"], 2 * [tiny.image()])
    length = alone["input_ids"].shape[1]
    torch.testing.assert_close(logits(model, **padded)[:1, -length:], logits(model, **alone), rtol=1e-4, atol=1e-4)


def test_another_prompt_guides_otherwise() -> None:
    """A word behind the image reaches the image's own rows, which causal attention alone would not allow."""
    model = tiny.model()
    inputs = tiny.inputs(tiny.processor(model.config), ["w1 <image> w2"], [tiny.image()])
    before, after = logits(model, **inputs), logits(model, **with_another_last_word(inputs))
    last_slot = int((inputs["input_ids"][0] == tiny.IMAGE).nonzero()[-1])
    assert not torch.equal(before[:, last_slot], after[:, last_slot])
