"""What a task is: images, questions and answers, and what a patch of an image shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PARTS = ("seen", "unseen")  # of the split: what trainings draw from, and what they never do
GRID = 12  # patches along an edge of every task's images


class Sample(NamedTuple):
    """One image and one question about it."""

    image: Array  # (pixels, pixels, 3) uint8
    question: tuple[str, ...]
    answer: tuple[str, ...]


class Patches(NamedTuple):
    """Images, and what their patches show: what an encoder learns from."""

    images: Array  # (B, pixels, pixels, 3) uint8
    labels: Array  # (B, labels, 12, 12) int64


class Task(ABC):
    """A stream of samples without end. All questions of a task have as many words, and so have all answers."""

    name: ClassVar[str]
    asked: ClassVar[str]  # what its questions ask for, in words
    unit: ClassVar[str]  # what a word of an answer is, in the singular
    guess: ClassVar[float]  # the accuracy of who knows how often each answer is given, and does not look
    words: ClassVar[tuple[str, ...]]  # of questions and answers
    answer_words: ClassVar[int]
    patch_pixels: ClassVar[int]
    labels: ClassVar[dict[str, int]]  # what an encoder names at each patch, and of how many kinds
    cells: ClassVar[int]  # along an edge; patches of a cell show one thing
    encoder_steps: ClassVar[int]  # of its training
    encoder: ClassVar[str]  # the name of the encoder, which tasks with the same images share
    tables: ClassVar[tuple[str, ...]]  # of rows.TABLES, in the order in which they are worth having

    @property
    def image_pixels(self) -> int:
        return GRID * self.patch_pixels

    @abstractmethod
    def draw(self, number: int, seed: int, part: str) -> Sample:
        """The sample of that number in the stream of a seed; the same arguments give the same sample.

        Raises:
            ValueError: a part that is neither "seen" nor "unseen".
        """

    @abstractmethod
    def patches(self, random: np.random.Generator, count: int, part: str, *, varied: bool) -> Patches:
        """Images and the labels of their patches; ``varied`` where they are trained on, and are few."""


def check_part(part: str) -> None:
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; it must be {' or '.join(map(repr, PARTS))}")


def in_colour(images: Array) -> Array:
    """(..., H, W) to (..., H, W, 3)."""
    return np.repeat(images[..., None], 3, -1)
