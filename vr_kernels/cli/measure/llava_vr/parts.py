"""Where the time to the first token goes, what a further token takes, and what a model holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from vr_kernels.cli.measure.llava_vr.models import Subject

ROUNDS = 3


def details_of(subject: Subject, answer: int, device: str) -> dict[str, float]:
    """Medians over whole generations, apart from the rounds that compare: clocks stand between the parts.

    Prefill is what is left of the time to the first token; tokens/s come after it, over the batch; the cache holds
    prompt and answer.
    """
    rounds = [_generation(subject, answer, device) for _ in range(ROUNDS)]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    prompt = float(subject.inputs["input_ids"].shape[1])
    return medians | {"prompt tokens": prompt, "parameters, M": subject.parameters() / 1e6}


def _generation(subject: Subject, answer: int, device: str) -> dict[str, float]:
    model, now = subject.model, _clock(device)
    modules = {"vision, ms": [model.model.vision_tower], "projector, ms": [model.model.multi_modal_projector]}
    modules["Vision Remember, ms"] = list(subject.blocks.values())
    ticks = _Ticks(now)
    with torch.inference_mode(), subject, ExitStack() as stack:
        taken = {name: stack.enter_context(_timed(parts, now)) for name, parts in modules.items()}
        begin = now()
        generated = model.generate(
            **subject.inputs,
            max_new_tokens=1 + answer,
            do_sample=False,
            streamer=ticks,
            return_dict_in_generate=True,
        )
    first, last = ticks.times[1] - begin, ticks.times[-1]  # the prompt is told too, before all
    milliseconds = {name: 1e3 * sum(spans) for name, spans in taken.items()}
    caches = generated.past_key_values.layers
    return {
        **milliseconds,
        "prefill, ms": 1e3 * first - sum(milliseconds.values()),
        "tokens/s": len(subject.inputs["input_ids"]) * answer / (last - ticks.times[1]),
        "KV, MB": sum(cache.keys.nbytes + cache.values.nbytes for cache in caches) / 1e6,
    }


class _Ticks:
    """A streamer that notes when tokens come."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.times = now, list[float]()

    def put(self, tokens: Any) -> None:
        self.times.append(self.now())

    def end(self) -> None:
        pass


@contextmanager
def _timed(modules: list[nn.Module], now: Callable[[], float]) -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each call."""
    begun: list[float] = []
    seconds: list[float] = []
    handles = [module.register_forward_pre_hook(lambda *call: begun.append(now())) for module in modules]
    handles += [module.register_forward_hook(lambda *call: seconds.append(now() - begun.pop())) for module in modules]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now
