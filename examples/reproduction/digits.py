"""The digit grid: 36 handwritten digits in one image, and the question what one of its rows reads.

The digits are those of scikit-learn's ``load_digits``, 1,797 images of 8x8 pixels. They are split by image, so that no
digit of a test grid was ever trained on; the data set does not say who wrote which. A row is six independent digits, so
that no knowledge of language helps.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SIDE = 6  # digits along an edge of the grid
DIGIT_PIXELS = 8
IMAGE_PIXELS = SIDE * DIGIT_PIXELS
UNSEEN_SHARE = 5  # one digit image in so many is never trained on

Array = npt.NDArray[Any]


class Digits(NamedTuple):
    """Digit images of one side of the split."""

    pixels: Array  # (N, 8, 8) uint8
    labels: Array  # (N,) int64, 0 to 9
    instances: Array  # (N,) int64, their numbers in load_digits


class Grid(NamedTuple):
    """One image and one question about it."""

    image: Array  # (48, 48) uint8
    labels: Array  # (6, 6) int64
    row: int  # that is asked for, from 0
    instances: Array  # (6, 6) int64


@cache
def load_split(part: str) -> Digits:
    """The digits of "seen" or "unseen": of each class every fifth, in an order shuffled once and for all, is unseen."""
    from sklearn.datasets import load_digits

    if part not in ("seen", "unseen"):
        raise ValueError(f"load_split: part is {part!r}; it must be 'seen' or 'unseen'")
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    chosen = []
    for label in range(10):
        of_class = order[data.target[order] == label]
        unseen = np.arange(len(of_class)) % UNSEEN_SHARE == 0
        chosen.append(of_class[unseen if part == "unseen" else ~unseen])
    instances = np.sort(np.concatenate(chosen))
    pixels = np.rint(data.images[instances] * (255 / 16)).astype(np.uint8)
    return Digits(pixels, data.target[instances].astype(np.int64), instances)


def draw_grid(digits: Digits, seed: int, number: int) -> Grid:
    """The grid of that number in an endless stream of them; the same arguments give the same grid."""
    random = np.random.default_rng([seed, number])
    chosen = random.integers(len(digits.labels), size=(SIDE, SIDE))
    return Grid(
        tile(digits.pixels[chosen]), digits.labels[chosen], int(random.integers(SIDE)), digits.instances[chosen]
    )


def tile(pixels: Array) -> Array:
    """(..., 6, 6, 8, 8) digits to (..., 48, 48) images."""
    rows_first = np.moveaxis(pixels, -3, -2)  # (..., 6, 8, 6, 8)
    return rows_first.reshape(*pixels.shape[:-4], IMAGE_PIXELS, IMAGE_PIXELS)
