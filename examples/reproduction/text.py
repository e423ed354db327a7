"""Rendered text on photographs, and the question what a line of it reads; in its coarse twin, which photograph it is.

The photographs are those that scikit-image and scikit-learn carry, the fonts those of matplotlib. The text is rendered:
six lines of six light letters with dark outlines, drawn independently, so that no knowledge of language helps. Split by
place, the left part of each photograph for training and the right part for tests, and by font.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from examples.reproduction.digits import tile
from examples.reproduction.task import GRID, Array, Patches, Sample, Task, check_part

SIDE = 6  # lines, and letters of each
LETTERS = "ABCDEFGHKLMNPRST"
IMAGE_PIXELS = 96
CELL = IMAGE_PIXELS // SIDE
MOVE = 1  # pixels that a letter may stand off, down and to the right
SEEN_SHARE = 0.7  # of a photograph's width
CROP = (0.2, 0.3)  # the edge of a crop, in shorter edges of the photograph
FONTS = {
    "seen": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono"),
    "unseen": ("DejaVuSerif-Bold", "DejaVuSansMono-Bold"),
}
SIZES = (12, 13)
# The words that name them, and where they are: in scikit-image by function, in scikit-learn by file.
PHOTOGRAPHS = {
    "astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "retina": "retina",
    "galaxies": "hubble_deep_field", "tissue": "immunohistochemistry", "motorcycle": "stereo_motorcycle",
    "temple": "china.jpg", "flower": "flower.jpg",
}  # fmt: skip


class Page(NamedTuple):
    """One image, and what is on it."""

    image: Array  # (96, 96, 3) uint8
    letters: Array  # (6, 6) int64, of LETTERS
    photograph: int  # of PHOTOGRAPHS


class RenderedText(Task):
    """ "line r :", and its six letters."""

    name = "text"
    asked = "the letters of a line"
    unit = "letter"
    guess = 1 / len(LETTERS)
    words = ("line", ":", *map(str, range(1, SIDE + 1)), *LETTERS)
    answer_words = SIDE
    patch_pixels = IMAGE_PIXELS // GRID
    labels: ClassVar[dict[str, int]] = {"letter": len(LETTERS), "photograph": len(PHOTOGRAPHS)}
    cells = SIDE
    encoder = "text"
    encoder_steps = 2000
    tables = ("effect",)

    def draw(self, number: int, seed: int, part: str) -> Sample:
        random = np.random.default_rng([seed, number])
        page, line = draw_page(random, part), int(random.integers(SIDE))
        return Sample(page.image, ("line", str(line + 1), ":"), tuple(LETTERS[i] for i in page.letters[line]))

    def patches(self, random: np.random.Generator, count: int, part: str, *, varied: bool) -> Patches:
        pages = [draw_page(random, part) for _ in range(count)]
        along = GRID // SIDE
        letters = np.stack([page.letters for page in pages]).repeat(along, 1).repeat(along, 2)  # (count, 12, 12)
        photographs = np.broadcast_to(np.array([p.photograph for p in pages])[:, None, None], letters.shape)
        return Patches(np.stack([page.image for page in pages]), np.stack([letters, photographs], 1))


class Photographs(RenderedText):
    """ "which photograph :", and its name: the same images, and nothing small to be read."""

    name = "photo"
    asked = "which photograph it is"
    unit = "photograph"
    guess = 1 / len(PHOTOGRAPHS)
    words = ("which", "photograph", ":", *PHOTOGRAPHS)
    answer_words = 1

    def draw(self, number: int, seed: int, part: str) -> Sample:
        page = draw_page(np.random.default_rng([seed, number]), part)
        return Sample(page.image, ("which", "photograph", ":"), (tuple(PHOTOGRAPHS)[page.photograph],))


def draw_page(random: np.random.Generator, part: str) -> Page:
    check_part(part)
    photograph = int(random.integers(len(PHOTOGRAPHS)))
    fonts = FONTS[part]
    letters = random.integers(len(LETTERS), size=(SIDE, SIDE))
    glyphs = drawn_letters(fonts[int(random.integers(len(fonts)))], SIZES[int(random.integers(len(SIZES)))])
    down, right = random.integers(MOVE + 1, size=(2, SIDE, SIDE))
    places = np.lib.stride_tricks.sliding_window_view(glyphs, (CELL, CELL), (2, 3))  # (2, letters, 2, 2, 16, 16)
    shapes = tile(places[:, letters, down, right])[..., None]  # (2, 96, 96, 1), outline and fill
    inks = random.integers(0, 56, size=3), random.integers(200, 256, size=3)  # dark, light
    image = crop(random, photograph, part).astype(np.float64)
    for shape, ink in zip(shapes, inks, strict=True):
        image += (ink - image) * shape
    return Page(np.rint(image).astype(np.uint8), letters, photograph)


def crop(random: np.random.Generator, photograph: int, part: str) -> Array:
    """(96, 96, 3) uint8, a place of the photograph's part."""
    from PIL import Image

    whole: Any = load_photographs()[photograph]
    width, height = whole.size
    first, last = (0.0, SEEN_SHARE * width) if part == "seen" else (SEEN_SHARE * width, float(width))
    edge = random.uniform(*CROP) * min(width, height)
    left, top = random.uniform(first, last - edge), random.uniform(0, height - edge)
    box = (left, top, left + edge, top + edge)
    return np.asarray(whole.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BILINEAR, box=box))


@cache
def load_photographs() -> list[Any]:
    """As PIL's images, in the order of PHOTOGRAPHS."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    def load(place: str) -> Any:
        if place.endswith(".jpg"):
            return load_sample_image(place)
        loaded = getattr(data, place)()
        return loaded[0] if isinstance(loaded, tuple) else loaded  # the left one of a pair

    return [Image.fromarray(load(place)) for place in PHOTOGRAPHS.values()]


@cache
def drawn_letters(font: str, size: int) -> Array:
    """(2, letters, 17, 17), from 0 to 1: how much of a pixel a letter's outline covers, and its fill."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    type_face = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf", size)
    room = CELL + MOVE
    drawn = np.empty((2, len(LETTERS), room, room))
    for shape, stroke in zip(drawn, (1, 0), strict=True):
        for image, letter in zip(shape, LETTERS, strict=True):
            canvas = Image.new("L", (room, room))
            ImageDraw.Draw(canvas).text(
                (room / 2, room / 2), letter, fill=255, font=type_face, anchor="mm", stroke_width=stroke
            )
            image[:] = np.asarray(canvas) / 255
    return drawn
