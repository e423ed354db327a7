"""The tasks of ``examples/reproduction``: what their images show is what their answers say, on the right side."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from examples.reproduction import charts, digits, text
from examples.reproduction.task import GRID, PARTS, Task
from examples.reproduction.tasks import TASKS, find_task


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return find_task(request.param)


def test_a_sample_is_drawn_again_from_its_numbers_alone(task: Task) -> None:
    first, again, other = (task.draw(number, 5, "seen") for number in (7, 7, 8))
    np.testing.assert_array_equal(first.image, again.image)
    assert first[1:] == again[1:]
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("part", PARTS)
def test_samples_have_the_sizes_that_their_task_says(task: Task, part: str) -> None:
    samples = [task.draw(number, 5, part) for number in range(20)]
    assert {sample.image.shape for sample in samples} == {(task.image_pixels, task.image_pixels, 3)}
    assert len({len(sample.question) for sample in samples}) == 1
    assert {len(sample.answer) for sample in samples} == {task.answer_words}
    assert {word for sample in samples for word in (*sample.question, *sample.answer)} <= set(task.words)
    assert len(set(task.words)) == len(task.words)


def test_patches_are_labelled_with_kinds_that_there_are(task: Task) -> None:
    images, labels = task.patches(np.random.default_rng(0), 3, "seen", varied=True)
    assert images.dtype == np.uint8
    assert labels.shape == (3, len(task.labels), GRID, GRID)
    assert (labels.max((0, 2, 3)) < list(task.labels.values())).all()
    assert labels.min() >= 0


def test_a_part_that_there_is_not_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="part is 'new'; it must be 'seen' or 'unseen'"):
        task.draw(0, 0, "new")


def test_who_does_not_look_gets_what_the_task_says(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commonest word at each place of the answers to a question's first word."""
    blank = np.zeros((task.image_pixels, task.image_pixels, 3), np.uint8)
    monkeypatch.setattr(charts, "render", lambda chart: blank)
    monkeypatch.setattr(text, "drawn_letters", lambda *_: np.zeros((2, 16, 17, 17)))
    monkeypatch.setattr(text, "crop", lambda *_: blank)
    counts: dict[Any, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number in range(2000):
        sample = task.draw(number, 7, "unseen")
        for place, word in enumerate(sample.answer):
            counts[sample.question[0], place][word] += 1
    every = sum(sum(of_place.values()) for of_place in counts.values())
    most = sum(of_place.most_common(1)[0][1] for of_place in counts.values()) / every
    assert most == pytest.approx(task.guess, abs=0.03)


def test_a_name_that_no_task_has_is_refused() -> None:
    with pytest.raises(ValueError, match="task is 'chess'; it must be one of digits, charts, text, photo"):
        find_task("chess")


def test_no_digit_image_is_on_both_sides_of_the_split() -> None:
    seen, unseen = digits.load_split("seen"), digits.load_split("unseen")
    assert not set(seen.instances) & set(unseen.instances)
    assert len(seen.instances) + len(unseen.instances) == 1797
    assert set(unseen.labels) == set(range(10))


@pytest.mark.parametrize("part", PARTS)
def test_the_pixels_of_a_grid_are_those_of_the_digits_it_is_labelled_with(part: str) -> None:
    from sklearn.datasets import load_digits

    data, grid = load_digits(), digits.draw_grid(digits.load_split(part), 5, 7)
    assert set(grid.instances.flat) <= set(digits.load_split(part).instances)
    for (row, column), instance in np.ndenumerate(grid.instances):
        cell = grid.image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(cell, np.rint(data.images[instance] * 255 / 16))
        assert grid.labels[row, column] == data.target[instance]
    sample = find_task("digits").draw(7, 5, part)
    np.testing.assert_array_equal(sample.image[..., 1], grid.image)
    assert sample.answer == tuple(str(label) for label in grid.labels[int(sample.question[1]) - 1])


def test_digits_that_an_encoder_learns_from_are_each_varied_a_little() -> None:
    digit = np.zeros((2, 100, 8, 8), dtype=np.uint8)
    digit[..., 2:6, 2:6] = 200
    varied = digits.vary(digit, np.random.default_rng(0))
    assert len(np.unique(varied.reshape(200, 64), axis=0)) == 200
    np.testing.assert_allclose(varied.mean((0, 1)), digit[0, 0], atol=80)
    np.testing.assert_allclose(varied.sum((-2, -1)), 16 * 200, rtol=0.45)


def test_no_row_of_a_table_is_on_both_sides_of_the_split() -> None:
    from sklearn.datasets import load_wine

    seen, unseen = charts.load_columns("seen"), charts.load_columns("unseen")
    assert len(seen) == len(unseen) == 4 + 13 + 30 + 10
    assert (len(seen[0]), len(unseen[0])) == (120, 30)  # irises
    column = load_wine().data[:, 0]
    values = np.minimum((column - column.min()) / (column.max() - column.min()) * 50, 49).astype(int)
    np.testing.assert_array_equal(np.sort(np.concatenate([seen[4], unseen[4]])), np.sort(values))
    assert not set(charts.STYLES["seen"]) & set(charts.STYLES["unseen"])


@pytest.mark.parametrize("style", ["default", "ggplot", "fivethirtyeight"])
def test_a_chart_is_what_matplotlib_draws_of_its_values(style: str) -> None:
    values = np.array([0, 49, 7, 7, 31, 12, 48, 3, 25, 40])
    assert len(np.unique(charts.drawn_charts(style), axis=0)) == 50  # no two values look alike
    np.testing.assert_array_equal(
        charts.render(charts.Chart(style, values)), charts.draw_charts(style, values[None])[0]
    )


def test_the_answers_about_a_chart_are_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[charts.Chart] = []
    monkeypatch.setattr(charts, "render", shown.append)
    asked = set()
    for number in range(100):
        sample = find_task("charts").draw(number, 3, "unseen")
        values, answer = shown.pop().values, sample.answer
        asked.add(sample.question[0])
        if sample.question[0] == "bars":
            first = int("".join(sample.question[1:3])) - 1
            assert answer == tuple(str(value // 5) for value in values[first : first + 3])
        else:
            assert list(values).count(values.max()) == 1
            assert int("".join(answer[:2])) == values.argmax() + 1
            assert answer[2] == str(values.max() // 5)
    assert asked == {"bars", "which"}


def test_the_label_of_a_patch_says_where_its_bars_end() -> None:
    values = np.array([0, 49, 10, 20, 30, 40, 5, 15, 25, 35])
    left, right = charts.ends(values)
    assert left[:, 0].tolist() == [0] * 11 + [4]  # the first bar ends in the last row of patches
    assert right[:, 1].tolist() == [5] + [9] * 11  # the second, at a pixel's height below the upper edge of the axes
    picture = charts.draw_charts("grayscale", values[None])[0, ..., 0] < 128
    for half, labels in ((2, left), (6, right)):
        for column in range(GRID):
            bar = picture[:, 8 * column + half][charts.FIRST + 1 : -charts.FIRST - 1]
            if bar[-1] and labels[:, column].max() > 0:  # else the pixel is between two bars
                high = np.clip(labels[:, column], 0, 8).sum() - charts.FIRST
                assert abs(int(bar.sum()) - high) <= 2


def test_the_letters_of_a_page_are_drawn_in_its_font_at_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "crop", lambda *_: np.full((96, 96, 3), 128, np.uint8))
    page = text.draw_page(np.random.default_rng(1), "unseen")
    ink = np.abs(page.image.astype(int) - 128).max(-1) > 0
    for (row, column), letter in np.ndenumerate(page.letters):
        cell = ink[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        shapes = [text.drawn_letters(font, size)[0, letter] > 0 for font in text.FONTS["unseen"] for size in text.SIZES]
        places = [shape[y : y + 16, x : x + 16] for shape in shapes for y in range(2) for x in range(2)]
        assert any((place == cell).mean() > 0.97 for place in places)


@pytest.mark.parametrize("part", PARTS)
def test_a_crop_stays_on_its_side_of_the_photograph(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    halves = np.zeros((100, 200, 3), np.uint8)
    halves[:, 140:] = 255  # the part that is not seen
    monkeypatch.setattr(text, "load_photographs", lambda: [Image.fromarray(halves)])
    random = np.random.default_rng(0)
    means = {text.crop(random, 0, part).mean() for _ in range(50)}
    assert means == {0.0 if part == "seen" else 255.0}


def test_every_photograph_comes_with_its_package() -> None:
    photographs = text.load_photographs()
    assert len(photographs) == len(text.PHOTOGRAPHS)
    for photograph in photographs:
        assert photograph.mode == "RGB"
        assert text.CROP[1] * min(photograph.size) < (1 - text.SEEN_SHARE) * photograph.width


def test_the_coarse_twin_shows_the_same_images() -> None:
    fine, coarse = (find_task(name).draw(3, 4, "seen") for name in ("text", "photo"))
    np.testing.assert_array_equal(fine.image, coarse.image)
    assert coarse.answer[0] in text.PHOTOGRAPHS
    assert find_task("photo").encoder == find_task("text").encoder
