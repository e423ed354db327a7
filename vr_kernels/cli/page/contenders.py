"""The models that the page compares: loaded, asked and timed, one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vr_kernels.cli.page.sight import Sight
from vr_kernels.models.inference import Assistant
from vr_kernels.models.prompts import user_message


@dataclass(frozen=True)
class Limits:
    """Of one model's answer. A step that has begun is ended: the prefill is one step, however long it is."""

    new_tokens: int = 128
    seconds: float = 60


@dataclass(frozen=True)
class Answer:
    """
    Args:
        first_seconds: from the prepared inputs to the first token. seconds: to the last.
        image_tokens: how many of them stand in the prompt, newlines among them; None where the model does not say.
    """

    text: str
    first_seconds: float
    seconds: float
    new_tokens: int
    image_tokens: int | None
    sight: Sight

    def figures(self) -> str:
        """In words, on one line."""
        image = "" if self.image_tokens is None else f"{self.image_tokens} image tokens; "
        return f"{image}first token after {self.first_seconds:.2f} s, all {self.new_tokens} after {self.seconds:.2f} s"


class Contender:
    """A model under the name that it has on the page.

    Loading it asks it once: the first pass of a model is slower than others, and one that cannot answer is known
    before the page opens.

    Raises:
        ValueError: what ``Assistant.load`` refuses; a model that cannot answer.
    """

    def __init__(self, name: str, folder: Path, *, device: str = "cpu", dtype: str = "auto") -> None:
        from PIL import Image

        self.name = name
        self.assistant = Assistant.load(folder, device=device, dtype=dtype)
        try:
            self.ask(Image.new("RGB", (64, 64), "grey"), "hello", Limits(new_tokens=2))
        except (ValueError, RuntimeError, TypeError) as reason:
            raise ValueError(f"model {folder}: it cannot be asked about an image: {reason}") from reason

    def ask(self, image: Any, question: str, limits: Limits) -> Answer:
        """The likeliest answer.

        Times are those of the model alone. What it looked at is recorded in a second prefill, which they leave out.

        Raises:
            ValueError: the chat template or the processor refuses the question.
        """
        assistant = self.assistant
        inputs = assistant.inputs([[user_message(question, 1)]], [[image]])
        clock = _Clock(inputs["input_ids"].device)
        (text,) = assistant.generate(
            inputs, do_sample=False, max_new_tokens=limits.new_tokens, max_time=limits.seconds, streamer=clock
        )
        seconds = clock.elapsed()
        return Answer(
            text=text,
            first_seconds=clock.first_seconds,
            seconds=seconds,
            new_tokens=clock.tokens,
            image_tokens=_image_tokens(assistant.model.config, inputs["input_ids"]),
            sight=Sight.record(assistant, inputs),
        )


class _Clock:
    """A streamer of transformers: it is put the prompt, then each token, on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.tokens, self.first_seconds = device, -1, 0.0
        self.began = self._now()

    def put(self, value: Tensor) -> None:
        self.tokens += 1
        if self.tokens == 1:
            self.first_seconds = self.elapsed()

    def end(self) -> None:
        """Nothing is left to be written."""

    def elapsed(self) -> float:
        return self._now() - self.began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _image_tokens(config: Any, input_ids: Tensor) -> int | None:
    token = getattr(config, "image_token_id", None)
    return None if token is None else int((input_ids == token).sum())
