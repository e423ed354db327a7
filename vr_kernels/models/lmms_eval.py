"""lmms-eval: models of this package by name, through the entry-point group ``lmms_eval.models``.

    lmms_eval --model vr_kernels --model_args pretrained=DIR --tasks mme

What is relied on inside lmms-eval stands here, as of 0.7.3.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.prompts import Message, user_message

try:
    from lmms_eval.api.model import lmms as Evaluated
except ImportError:  # this module is read without it, and used by it alone
    Evaluated = object


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vr_kernels", simple_class_path=f"{__name__}.{EvaluatedAssistant.__name__}", aliases=("llava_vr",)
    )


class EvaluatedAssistant(Evaluated):
    """LLaVA-VR, or any image-text-to-text model of transformers, as lmms-eval asks it.

    Args:
        pretrained: the folder that ``save_pretrained`` wrote.
        device: "cpu" or "cuda", which is the process's own device where there are several.
        dtype: of the weights; "auto" is the one that they were saved in.
        batch_size: prompts that are answered at a time.

    Raises:
        ValueError: another argument; what ``Assistant.load`` refuses.
    """

    is_simple = True  # the interface that has likelihoods

    def __init__(
        self, pretrained: str, device: str = "cpu", dtype: str = "auto", batch_size: int | str = 1, **others: Any
    ) -> None:
        super().__init__()
        given = [name for name, value in others.items() if name != "max_batch_size" or value is not None]
        if given:
            known = "pretrained, device, dtype, batch_size"
            raise ValueError(f"vr_kernels: {given[0]} is no argument of this model; it has {known}")
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.assistant = Assistant.load(pretrained, device=device, dtype=dtype)
        self.batch_size = int(batch_size)

    @property
    def device(self) -> Any:
        return self.assistant.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Of each request (context, options of generation, images of a document, its number, task, split)."""
        answers: list[str] = []
        arguments = [request.args for request in requests]
        for options, group in itertools.groupby(arguments, key=lambda asked: asked[1]):
            for batch in _batches(group, self.batch_size):
                messages, images = zip(*(self._asked(context, *which) for context, _, *which in batch), strict=True)
                inputs = self.assistant.inputs(messages, images)
                answers += [_until(answer, options) for answer in self.assistant.generate(inputs, **_options(options))]
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Of each request (context, answer, images of a document, its number, task, split).

        Returns:
            The mean negative log-likelihood of the answer's tokens, and whether greedy decoding gives them: lmms-eval
            takes the answer of the least, in spite of the name. The prompt is all that Vision Remember's guide sees.
            Each pair comes in a ``GenerationResult``, for lmms-eval makes a text of any other pair of numbers.
        """
        from lmms_eval.api.instance import GenerationResult

        scores = []
        for context, answer, *which in (request.args for request in requests):
            if callable(answer):
                answer = answer(self._document(*which[1:]))
            scores.append(GenerationResult(self.assistant.score(*self._asked(context, *which), answer)))
        return scores

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """lmms-eval wants one; a task that asks in several rounds is refused."""
        tasks = sorted({request.args[-2] for request in requests})
        raise ValueError(
            f"vr_kernels: task {', '.join(tasks)} is of output type generate_until_multi_round; "
            "it must be generate_until or loglikelihood"
        )

    def _asked(self, context: str, *which: Any) -> tuple[list[Message], list[Any]]:
        """The message and its images; ``which`` is empty where there is no document."""
        images: list[Any] = []
        if which:
            of_document, *place = which
            images = of_document(self._document(*place)) or []
        opened = [open_image(Path(image)) if isinstance(image, str) else image.convert("RGB") for image in images]
        return [user_message(context, len(opened))], opened

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while batch := list(itertools.islice(left, size)):
        yield batch


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    """Of ``generate``: greedy unless there is a temperature, as lmms-eval's own models.

    Tasks also ask for what is of another model, such as ``image_aspect_ratio``: ``generate`` would refuse it.
    """
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    _say_what_is_left_out(tuple(sorted(asked.keys() - known.keys() - {"until"})))
    options = {"max_new_tokens": 1024} | {name: value for name, value in asked.items() if name in known}
    if options.get("temperature"):
        return options | {"do_sample": True}
    return options | {"do_sample": False, "temperature": None, "top_p": None}


@functools.cache
def _say_what_is_left_out(names: tuple[str, ...]) -> None:
    """Once for the same ones."""
    if names:
        logging.getLogger("vr_kernels").warning(
            "of generation_kwargs %s left out: no option of transformers' generate", ", ".join(names)
        )


def _until(answer: str, asked: dict[str, Any]) -> str:
    """Up to the first of the texts that end it."""
    stops = asked.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        answer = answer.split(stop, 1)[0] if stop else answer
    return answer
