"""Batches of prompts for the pruned models, and a small setting of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.integrations._pruning import IMAGE, WORDS
from python_tests.integrations._towers import pixels

CASES: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep_ratio": 0.5},
    "pyramiddrop": {"layers": (1, 3, 4), "keep_ratios": (0.7, 0.5, 0.2)},
    "sparsevlm": {"layers": (0, 2, 3), "keep_counts": (6, 4, 3)},
    "random": {"layer": 2, "keep_ratio": 0.5},
}
ALL: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep_ratio": 1.0},
    "pyramiddrop": {"layers": (1, 3), "keep_ratios": (1.0, 1)},
    "sparsevlm": {"layers": (0, 2), "keep_counts": (99, 99)},
    "random": {"layer": 1, "keep_ratio": 1},
}
methods = pytest.mark.parametrize("method", CASES)
decoders = pytest.mark.parametrize("decoder", ["qwen2", "llama"])
PATCHES = 9
SEARCHES = {"greedy": {"do_sample": False}, "beams": {"num_beams": 3, "do_sample": False}}
BANNED = [0, IMAGE, 3]


def batch(*images: int, text: int = 4) -> dict[str, Tensor]:
    """Left-padded samples of so many images each, a word between them, words before and behind; and their pixels."""
    words = torch.Generator().manual_seed(5)
    samples = []
    for place, count in enumerate(images):
        ids = torch.randint(4, WORDS, (2 + place,), generator=words).tolist()
        for _ in range(count):
            ids += [IMAGE] * PATCHES + torch.randint(4, WORDS, (1,), generator=words).tolist()
        samples.append(ids + torch.randint(4, WORDS, (text,), generator=words).tolist())
    longest = max(map(len, samples))
    ids = torch.tensor([[0] * (longest - len(sample)) + sample for sample in samples])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return inputs | ({"pixel_values": pixels(sum(images))} if sum(images) else {})


def alone(inputs: dict[str, Tensor], place: int, images: tuple[int, ...]) -> dict[str, Tensor]:
    """One sample of a batch, without its padding."""
    real = inputs["attention_mask"][place].bool()
    own = {"input_ids": inputs["input_ids"][place : place + 1, real]}
    own["attention_mask"] = torch.ones_like(own["input_ids"])
    if images[place]:
        first = sum(images[:place])
        own["pixel_values"] = inputs["pixel_values"][first : first + images[place]]
    return own
