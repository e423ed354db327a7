"""The digit grid: 36 handwritten digits in one image, and the question what one of its rows reads.

The digits are those of scikit-learn's ``load_digits``, 1,797 images of 8x8 pixels. They are split by image, so that no
digit of a test grid was ever trained on; the data set does not say who wrote which. A row is six independent digits, so
that no knowledge of language helps.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from examples.reproduction.task import GRID, Array, Patches, Sample, Task, check_part, in_colour

SIDE = 6  # digits along an edge of the grid
DIGIT_PIXELS = 8
IMAGE_PIXELS = SIDE * DIGIT_PIXELS
UNSEEN_SHARE = 5  # one digit image in so many is never trained on


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


class DigitGrid(Task):
    """ "row r :", and its six digits."""

    name = "digits"
    asked = "the digits of a row"
    unit = "digit"
    guess = 0.1
    words = ("row", ":", *map(str, range(10)))
    answer_words = SIDE
    patch_pixels = IMAGE_PIXELS // GRID
    labels: ClassVar[dict[str, int]] = {"digit": 10}
    cells = SIDE
    encoder = "digits"
    encoder_steps = 2000
    tables = ("components", "interaction", "insertion", "ratio", "refusion", "methods", "projectors", "compute")

    def draw(self, number: int, seed: int, part: str) -> Sample:
        grid = draw_grid(load_split(part), seed, number)
        answer = tuple(str(digit) for digit in grid.labels[grid.row])
        return Sample(in_colour(grid.image), ("row", str(grid.row + 1), ":"), answer)

    def patches(self, random: np.random.Generator, count: int, part: str, *, varied: bool) -> Patches:
        digits = load_split(part)
        chosen = random.integers(len(digits.labels), size=(count, SIDE, SIDE))
        pixels, along = digits.pixels[chosen], GRID // SIDE
        labels = digits.labels[chosen].repeat(along, 1).repeat(along, 2)  # (count, 12, 12)
        return Patches(in_colour(tile(vary(pixels, random) if varied else pixels)), labels[:, None])


@cache
def load_split(part: str) -> Digits:
    """The digits of "seen" or "unseen": of each class every fifth, in an order shuffled once and for all, is unseen."""
    from sklearn.datasets import load_digits

    check_part(part)
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
    """(..., n, n, p, p) cells to (..., n * p, n * p) images."""
    rows_first = np.moveaxis(pixels, -3, -2)  # (..., n, p, n, p)
    side = pixels.shape[-3] * pixels.shape[-1]
    return rows_first.reshape(*pixels.shape[:-4], side, side)


def vary(pixels: Array, random: np.random.Generator) -> Array:
    """(..., 8, 8) digits, each turned, slanted, scaled and moved a little.

    There are few, and a tower that sees them as they are learns them by heart.
    """
    count = pixels[..., 0, 0].size
    angle, slant, wide, high = random.uniform(-1, 1, size=(4, count)) * [[0.1], [0.1], [0.1], [0.1]]
    cosine, sine = np.cos(angle), np.sin(angle)
    turns = np.stack([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1)  # (count, 2, 2)
    shapes = np.stack([[1 + wide, slant], [0 * slant, 1 + high]]).transpose(2, 0, 1)
    moves = random.uniform(-0.1, 0.1, size=(count, 2, 1))  # of half a digit
    maps = torch.from_numpy(np.concatenate([turns @ shapes, moves], -1)).float()
    digits = torch.from_numpy(pixels).float().view(count, 1, *pixels.shape[-2:])
    places = F.affine_grid(maps, list(digits.shape), align_corners=False)
    varied = F.grid_sample(digits, places, align_corners=False)
    return varied.round().to(torch.uint8).view(pixels.shape).numpy()
