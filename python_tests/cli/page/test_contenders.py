"""A model's answer on the page: that of ``Assistant``, within limits, with times that leave the recording out."""

from __future__ import annotations

import time
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from python_tests.models import _folders, _llava_vr
from vr_kernels.cli.page.contenders import Answer, Contender, Limits
from vr_kernels.cli.page.sight import Sight
from vr_kernels.models.inference import Assistant
from vr_kernels.models.prompts import user_message

SAVED = {"llava_vr": _folders.save_llava_vr, "llava_next": _folders.save_llava_next}


@pytest.fixture(scope="module", params=list(SAVED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


def test_the_answer_is_that_of_the_assistant(folder: Path) -> None:
    answer = Contender("name", folder).ask(_llava_vr.image(), "w1 w2", Limits(new_tokens=6))
    assistant = Assistant.load(folder)
    inputs = assistant.inputs([[user_message("w1 w2", 1)]], [[_llava_vr.image()]])
    assert answer.text == assistant.generate(inputs, max_new_tokens=6, do_sample=False)[0]
    assert answer.new_tokens == 6
    assert answer.image_tokens == (inputs["input_ids"] == _llava_vr.IMAGE).sum()
    assert 0 < answer.first_seconds < answer.seconds


def test_an_answer_ends_with_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contender = Contender("name", folder)
    forward = contender.assistant.model.forward

    @wraps(forward)  # generate() reads its signature
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return forward(*args, **kwargs)

    monkeypatch.setattr(contender.assistant.model, "forward", slow)
    answer = contender.ask(_llava_vr.image(), "w1", Limits(new_tokens=1000, seconds=0.2))
    assert 1 <= answer.new_tokens <= 5


def test_recording_what_it_saw_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contender, now = Contender("name", folder), [0.0]

    def wait(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr("vr_kernels.cli.page.contenders.time", SimpleNamespace(perf_counter=lambda: wait(1)))
    monkeypatch.setattr(Sight, "record", lambda *given: wait(1000))
    answer = contender.ask(_llava_vr.image(), "w1", Limits(new_tokens=3))
    assert (answer.first_seconds, answer.seconds) == (1, 2)


def test_a_model_that_cannot_be_asked_is_known_when_it_is_loaded(tmp_path: Path) -> None:
    folder = _folders.save_llava_vr(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no images, please') }}")
    with pytest.raises(ValueError, match=r"it cannot be asked about an image: .*no images, please"):
        Contender("name", folder)


def test_figures_are_said_in_words() -> None:
    sight = Sight(None, None, {})
    answer = Answer("yes", first_seconds=0.25, seconds=1.5, new_tokens=3, image_tokens=64, sight=sight)
    assert answer.figures() == "64 image tokens; first token after 0.25 s, all 3 after 1.50 s"
