"""Charts: ten bars that matplotlib drew, of real measurements, and the question how high three of them are.

The tables are those that scikit-learn carries. A chart shows ten rows of one column, on a scale from 0, the column's
least value, to 49, its greatest. Split by rows of the tables and by style sheets of matplotlib. There is no room for
text on 96x96 pixels: what the scale is has to be learned, and bars are counted from the left.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from examples.reproduction.task import GRID, Array, Patches, Sample, Task, check_part

BARS = 10
VALUES = 50  # heights of a bar, 0 to 49
IMAGE_PIXELS = 96
FIRST, WIDTH = 3, 9  # pixels: where the first bar's strip begins, and how wide each is
HIGH = BARS * WIDTH  # of the axes
UNSEEN_SHARE = 5  # one row of a table in so many is never trained on
ASKED = 3  # bars
HIGHEST_SHARE = 0.2  # of the questions
STYLES = {
    "seen": (
        "default", "ggplot", "bmh", "grayscale", "dark_background", "Solarize_Light2", "seaborn-v0_8-darkgrid",
        "seaborn-v0_8-pastel",
    ),
    "unseen": ("fivethirtyeight", "seaborn-v0_8-whitegrid"),
}  # fmt: skip


class Chart(NamedTuple):
    style: str
    values: Array  # (10,) int64, 0 to 49


class Charts(Task):
    """ "bars 0 7 :" and how many tenths of the scale bars 7, 8 and 9 reach, a digit each; or "which is highest :" and
    the two digits of its number, and its tenths."""

    name = "charts"
    asked = "how many tenths of the scale a bar and the two beside it reach, or which is the highest, and its tenths"
    unit = "digit"
    guess = 0.23
    words = ("bars", "which", "is", "highest", ":", *map(str, range(10)))
    answer_words = ASKED
    patch_pixels = IMAGE_PIXELS // GRID
    labels: ClassVar[dict[str, int]] = {"left": 10, "right": 10}
    cells = GRID
    encoder = "charts"
    encoder_steps = 600
    tables = ("effect",)

    def draw(self, number: int, seed: int, part: str) -> Sample:
        random = np.random.default_rng([seed, number])
        chart = draw_chart(random, part)
        tenths = [str(tenth) for tenth in chart.values * 10 // VALUES]
        highest = np.flatnonzero(chart.values == chart.values.max())
        first, ask_highest = int(random.integers(BARS - ASKED + 1)), random.random() < HIGHEST_SHARE
        if ask_highest and len(highest) == 1:
            bar = int(highest[0])
            return Sample(render(chart), ("which", "is", "highest", ":"), (*two_digits(bar + 1), tenths[bar]))
        asked = tenths[first : first + ASKED]
        return Sample(render(chart), ("bars", *two_digits(first + 1), ":"), tuple(asked))

    def patches(self, random: np.random.Generator, count: int, part: str, *, varied: bool) -> Patches:
        charts = [draw_chart(random, part) for _ in range(count)]
        return Patches(np.stack([render(chart) for chart in charts]), np.stack([ends(c.values) for c in charts]))


def two_digits(number: int) -> tuple[str, str]:
    return str(number // 10), str(number % 10)


def draw_chart(random: np.random.Generator, part: str) -> Chart:
    columns = load_columns(part)
    column = columns[int(random.integers(len(columns)))]
    styles = STYLES[part]
    return Chart(styles[int(random.integers(len(styles)))], column[random.integers(len(column), size=BARS)])


@cache
def load_columns(part: str) -> list[Array]:
    """Each column of the tables as values from 0 to 49; every fifth row, in an order shuffled once, is unseen."""
    from sklearn import datasets

    check_part(part)
    columns = []
    for load in (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes):
        table = load().data
        unseen = np.random.default_rng(0).permutation(len(table)) % UNSEEN_SHARE == 0
        least, greatest = table.min(0), table.max(0)
        values = np.minimum((table - least) / (greatest - least) * VALUES, VALUES - 1).astype(np.int64)
        columns += [*values[unseen if part == "unseen" else ~unseen].T]
    return columns


def render(chart: Chart) -> Array:
    """(96, 96, 3) uint8.

    A chart's strips are those of charts whose bars are all as high, for no bar reaches into the next strip: so
    matplotlib draws fifty charts of a style, and not one a sample.
    """
    drawn = drawn_charts(chart.style)
    image: Array = drawn[0].copy()
    for bar, value in enumerate(chart.values):
        strip = slice(FIRST + bar * WIDTH, FIRST + (bar + 1) * WIDTH)
        image[:, strip] = drawn[value, :, strip]
    return image


@cache
def drawn_charts(style: str) -> Array:
    """(50, 96, 96, 3) uint8, by the value that all bars of a chart have."""
    return draw_charts(style, np.repeat(np.arange(VALUES)[:, None], BARS, 1))


def draw_charts(style: str, values: Array) -> Array:
    """(N, 10) values to (N, 96, 96, 3) uint8, charts as matplotlib draws them."""
    from matplotlib import style as styles
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = np.empty((len(values), IMAGE_PIXELS, IMAGE_PIXELS, 3), np.uint8)
    with styles.context(style):
        figure = Figure(figsize=(IMAGE_PIXELS / 100, IMAGE_PIXELS / 100), dpi=100)
        canvas: Any = FigureCanvasAgg(figure)
        edge = FIRST / IMAGE_PIXELS
        axes: Any = figure.add_axes((edge, edge, HIGH / IMAGE_PIXELS, HIGH / IMAGE_PIXELS))
        bars = axes.bar(range(BARS), np.ones(BARS), width=0.7)
        axes.set(xlim=(-0.5, BARS - 0.5), ylim=(0, VALUES), xticks=[], yticks=range(0, VALUES, 10))
        axes.tick_params(left=False, labelleft=False)
        for image, heights in zip(images, values + 0.5, strict=True):  # the least value has a height, too
            for bar, height in zip(bars, heights, strict=True):
                bar.set_height(height)
            canvas.draw()
            image[:] = np.asarray(canvas.buffer_rgba())[..., :3]
    return images


def ends(values: Array) -> Array:
    """(2, 12, 12) int64: of each patch, where the bar through its left and its right half ends: 0 below the patch, 1 to
    8 in that row of its pixels, 9 above it."""
    pixels = IMAGE_PIXELS // GRID
    halves = np.arange(GRID)[None] * pixels + np.array([[pixels // 4], [pixels - pixels // 4]])  # (2, 12)
    bars = np.clip((halves - FIRST) // WIDTH, 0, BARS - 1)
    tops = IMAGE_PIXELS - FIRST - (values[bars] + 0.5) * HIGH / VALUES  # (2, 12), pixels from above
    below = (np.arange(GRID)[:, None] + 1) * pixels  # (12, 1), each row of patches' lower edge
    rows: Array = np.clip(np.ceil(below - tops[:, None]), 0, pixels + 1).astype(np.int64)
    return rows
