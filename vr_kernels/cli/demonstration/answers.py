"""Two small trained models that differ in Vision Remember, asked about images that neither was trained on.

``examples/reproduction`` trained them, and wrote the folders that this reads.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vr_kernels import capture_features
from vr_kernels.cli.measure.memory import Call
from vr_kernels.integrations import record_window_attention
from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import user_message

MODELS = Path(__file__).parents[3] / "docs" / "results" / "models"  # of a clone; a wheel is without it
POOLED, REMEMBERING = "pooled", "vision-remember"
LONGEST_ANSWER = 8  # tokens


class Question(NamedTuple):
    image: Path
    prompt: str
    answer: str


class Questions(NamedTuple):
    """Of a task; ``asked`` says what for, ``unit`` what a word of its answers is."""

    asked: str
    unit: str
    every: list[Question]


class Overlays(NamedTuple):
    """What is drawn over an image of one tile."""

    attention: Tensor  # (H, W): of each feature, the weight that its window's token gives it, mean over heads
    saliency: Tensor  # (H, W): the attention that each feature receives in the encoder's last block
    windows: tuple[int, int]  # n_h, n_w


def tasks(folder: Path) -> list[str]:
    """Those that the folder has models of, digits first.

    Raises:
        ValueError: there is none.
    """
    names = [path.name.removesuffix("-questions") for path in folder.glob("*-questions")]
    if not names:
        raise ValueError(f"{folder} holds no trained models")
    return sorted(names, key=lambda name: (name != "digits", name))


def read_questions(folder: Path, task: str) -> Questions:
    """Those of ``questions.json``, with their images beside it."""
    beside = folder / f"{task}-questions"
    read = json.loads((beside / "questions.json").read_text())
    listed = [Question(beside / one["image"], one["prompt"], one["answer"]) for one in read["questions"]]
    return Questions(read["asked"], read["unit"], listed)


def model_folder(folder: Path, task: str, kind: str) -> Path:
    return folder / f"{task}-{kind}"


def load_models(folder: Path, task: str) -> dict[str, Assistant]:
    """Both, in float32."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return {kind: Assistant.load(model_folder(folder, task, kind), dtype="float32") for kind in (POOLED, REMEMBERING)}


def inputs_of(assistant: Assistant, question: Question) -> dict[str, Tensor]:
    return assistant.inputs([[user_message(question.prompt, 1)]], [[open_image(question.image)]])


def answer(assistant: Assistant, question: Question) -> str:
    inputs = inputs_of(assistant, question)
    return assistant.generate(inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)[0]


def judged(given: str, truth: str) -> list[tuple[str, bool]]:
    """Each word that is given, and whether it is right at its place."""
    pairs = itertools.zip_longest(given.split(), truth.split())
    return [(word, word == true) for word, true in pairs if word is not None]


def words_right(given: str, truth: str) -> int:
    return sum(right for _, right in judged(given, truth))


def first_token(assistant: Assistant, question: Question) -> Callable[[], Any]:
    """From pixels and tokens to the first token of the answer, again at each call."""
    inputs = inputs_of(assistant, question)
    return lambda: assistant.generate(inputs, max_new_tokens=1, do_sample=False)


def memory_calls(folder: str, task: str, kind: str) -> dict[str, Call]:
    """For ``peak_memory``: the first token of one model; a pass of text alone loads the code first."""
    assistant = Assistant.load(model_folder(Path(folder), task, kind), dtype="float32")
    question = read_questions(Path(folder), task).every[0]
    text = {key: value[:, -3:] for key, value in inputs_of(assistant, question).items() if value.dim() == 2}
    return {kind: Call(lambda: assistant.generate(text, max_new_tokens=1), first_token(assistant, question))}


def look(assistant: Assistant, question: Question) -> Overlays:
    """What a model with Vision Remember looks at when it reads an image of one tile."""
    tower = assistant.model.model.vision_tower
    last = tower.config.num_hidden_layers
    with (
        record_window_attention(assistant.model) as recorded,
        capture_features(tower, [last], saliency="received") as captured,
    ):
        first_token(assistant, question)()
    assert captured.saliency is not None
    block = recorded[min(recorded)]
    grid = block.vision_map.grid
    assert grid is not None
    return Overlays(block.over_features()[0], captured.saliency[0], grid)
