"""``VisionTokenMap``: its tables against a statement by hand, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.nn._vision_batch import GRID, TILES, Token, slots_of
from vr_kernels import LocalCrossAttention, VisionTokenMap


def windows_by_hand(tokens: list[Token], feature_grid: tuple[int, int]) -> list[list[int]]:
    height, width = feature_grid

    def span(i: int, n: int, size: int) -> range:
        return range(i * size // n, -((i + 1) * size // -n))

    return [
        [
            (token.tile * height + y) * width + x
            for y in span(token.row, GRID[0], height)
            for x in span(token.column, GRID[1], width)
        ]
        for token in tokens
    ]


@pytest.mark.parametrize("feature_grid", [(4, 9), (5, 7), (2, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("unpad", [False, True])
def test_slots_become_rows_images_samples_and_windows(feature_grid: tuple[int, int], unpad: bool) -> None:
    slots, by_slot = slots_of(unpad=unpad)
    vision_map = VisionTokenMap.from_slots(slots, grid=GRID, feature_grid=feature_grid, tiles=TILES)
    tokens = sorted(by_slot, key=lambda token: (token.tile, token.row, token.column))
    images = [[24 * t.sample + t.slot for t in tokens if t.image == image] for image in range(3)]
    assert [[row for row in rows if row >= 0] for rows in vision_map.token_rows.tolist()] == images
    assert vision_map.token_rows.shape == (3, max(map(len, images)))
    assert vision_map.image_sample.tolist() == [0, 2, 2]
    assert vision_map.rows.tolist() == [row for rows in images for row in rows]
    windows = [[row for row in window if row >= 0] for window in vision_map.window_index.tolist()]
    assert windows == windows_by_hand(tokens, feature_grid)
    if unpad:
        assert vision_map.cells is not None
        assert vision_map.cells.tolist() == [(t.tile * 2 + t.row) * 3 + t.column for t in tokens]
    else:
        assert vision_map.cells is None
    assert vision_map.feature_rows == 4 * feature_grid[0] * feature_grid[1]
    assert vision_map.num_tiles == 4
    assert vision_map.ragged == (feature_grid not in ((4, 9), (2, 3)))


def test_a_grid_at_a_mask_is_its_slots_in_raster_order() -> None:
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 3:7] = True  # left padding before
    mask[2, 0:2] = mask[2, 3:9] = True  # two images of one and ... a newline between; sample 1 has none
    vision_map = VisionTokenMap.from_grid(mask, grid=(1, 2), feature_grid=(2, 2), tiles=(1, 1, 3, 1))
    assert vision_map.token_rows.tolist() == [
        [3, 4, -1, -1, -1, -1],
        [5, 6, -1, -1, -1, -1],
        [18, 19, 21, 22, 23, 24],
        [25, 26, -1, -1, -1, -1],
    ]
    assert vision_map.image_sample.tolist() == [0, 0, 2, 2]
    assert vision_map.window_index.tolist()[:3] == [[0, 2], [1, 3], [4, 6]]


def test_without_tiles_every_tile_is_an_image() -> None:
    mask = torch.tensor([[True] * 4, [False] * 4])
    assert VisionTokenMap.from_grid(mask, grid=(2, 1), feature_grid=(4, 4)).token_rows.tolist() == [[0, 1], [2, 3]]


def test_a_batch_without_an_image_has_an_empty_map() -> None:
    mask = torch.zeros(2, 5, dtype=torch.bool)
    vision_map = VisionTokenMap.from_grid(mask, grid=(2, 2), feature_grid=(4, 4))
    assert vision_map.token_rows.shape == (0, 0)
    assert vision_map.window_index.shape == (0, 4)
    slots = torch.full((2, 5, 3), -1)
    truncated = VisionTokenMap.from_slots(slots, grid=(2, 2), feature_grid=(4, 4), tiles=(2,))
    assert (len(truncated.rows), truncated.feature_rows) == (0, 32)


def test_an_image_that_truncation_removed_is_no_row() -> None:
    slots, _ = slots_of()
    slots[0] = -1
    vision_map = VisionTokenMap.from_slots(slots, grid=GRID, feature_grid=(4, 9), tiles=TILES)
    assert vision_map.image_sample.tolist() == [2, 2]
    assert int(vision_map.window_index.min()) == 36  # tile 0 is read by nobody


def test_it_moves_and_is_replaced_whole() -> None:
    slots, _ = slots_of(unpad=True)
    vision_map = VisionTokenMap.from_slots(slots, grid=GRID, feature_grid=(4, 9), tiles=TILES)
    vision_map = dataclasses.replace(vision_map, newline_rows=torch.tensor([[11], [-1], [71]]))
    moved = vision_map.to("meta")
    for field in dataclasses.fields(vision_map):
        old, new = getattr(vision_map, field.name), getattr(moved, field.name)
        if isinstance(old, Tensor):
            assert (new.device.type, new.shape, new.dtype) == ("meta", old.shape, old.dtype)
        else:
            assert new == old
    assert dataclasses.replace(vision_map).rows is vision_map.rows


def test_any_geometry_may_be_given_as_tables() -> None:
    vision_map = VisionTokenMap(
        token_rows=torch.tensor([[4, -1], [1, 0]]),
        image_sample=torch.tensor([1, 0]),
        window_index=torch.tensor([[5, 6], [0, -1], [-1, -1]]),
        sequence_shape=(2, 4),
        feature_rows=7,
    )
    assert vision_map.rows.tolist() == [4, 1, 0]
    assert (vision_map.num_tiles, vision_map.ragged) == (0, False)


def test_it_knows_whether_anything_is_missing_without_asking_a_device() -> None:
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 2 + [True] * 4])
    whole = VisionTokenMap.from_grid(mask, grid=(2, 2), feature_grid=(4, 4))
    ragged = VisionTokenMap.from_grid(mask, grid=(1, 2), feature_grid=(2, 2), tiles=[1, 1, 2])
    assert (whole.padded, ragged.padded) == (False, True)
    assert (whole.to("meta").padded, ragged.to("meta").padded) == (False, True)
    assert whole.newlines_padded is None
    for rows, padded in (([[4], [6]], False), ([[4], [-1]], True)):
        newlines = dataclasses.replace(whole, newline_rows=torch.tensor(rows))
        assert newlines.newlines_padded is padded
        assert newlines.to("meta").newlines_padded is padded
    assert not whole.text_in_every_sample
    told = whole.with_text(~mask)
    assert told.text_in_every_sample
    assert told.to("meta").text_in_every_sample
    assert not whole.with_text(~mask & torch.tensor([[True], [False]])).text_in_every_sample
    assert not told.with_text(mask & ~mask).text_in_every_sample
    first = VisionTokenMap.from_grid(mask & torch.tensor([[True], [False]]), grid=(2, 2), feature_grid=(4, 4))
    assert first.with_text(~mask & torch.tensor([[True], [False]])).text_in_every_sample, "no image stands in the other"
    for error, words, fault in (
        (TypeError, "text_mask is torch.int64; it must be torch.bool", mask.long()),
        (ValueError, r"text_mask has shape \(2, 5\); it must be \(2, 6\)", mask[:, 1:]),
        (ValueError, "text_mask is on meta, the map is on cpu", mask.to("meta")),
        (TypeError, "text_mask is None", None),
    ):
        with pytest.raises(error, match=f"^VisionTokenMap.with_text: {words}"):
            whole.with_text(fault)  # type: ignore[arg-type]


TABLES: dict[str, Any] = {
    "token_rows": torch.tensor([[0, 1], [5, -1]]),
    "image_sample": torch.tensor([0, 1]),
    "window_index": torch.tensor([[0, 1], [2, 3], [4, -1]]),
    "sequence_shape": (2, 4),
    "feature_rows": 6,
}
GRIDS: dict[str, Any] = {"grid": (1, 3), "feature_grid": (1, 6), "cells": None}

VALUE_FAULTS: dict[str, dict[str, Any]] = {
    "image_sample has shape (3,); it must be (I,) = (2,)": {"image_sample": torch.tensor([0, 1, 1])},
    "token_rows has shape (2,); it must be (I, N)": {"token_rows": torch.tensor([0, 1])},
    "sequence_shape is (2,); it must be two integers of at least 1": {"sequence_shape": (2,)},
    "feature_rows is -1; it must be an integer of at least 0": {"feature_rows": -1},
    "window_index has shape (2, 2); it must be (V, K) with V = 3": {"window_index": torch.tensor([[0, 1], [2, 3]])},
    "window_index has shape (3, 0); it must be (V, K)": {"window_index": torch.zeros(3, 0, dtype=torch.int64)},
    "token_rows[1, 0] is 8; it must be -1 (padding) or a row b*T + t in [0, 8)": {
        "token_rows": torch.tensor([[0, 1], [8, -1]])
    },
    "token_rows[1, 1] is -2;": {"token_rows": torch.tensor([[0, 1], [5, -2]])},
    "rows is not token_rows without its padding; leave it out": {"rows": torch.tensor([0, 5, 1])},
    "token_rows names a row twice": {"token_rows": torch.tensor([[0, 0], [5, -1]])},
    "token_rows[1, 0] is in sample 1, image_sample[1] is 0;": {"image_sample": torch.tensor([0, 0])},
    "window_index[2, 0] is 6; it must be -1 (absent) or a feature row in [0, 6)": {
        "window_index": torch.tensor([[0, 1], [2, 3], [6, -1]])
    },
    "newline_rows has shape (1, 2); it must be (I, M) with I = 2": {"newline_rows": torch.tensor([[2, 3]])},
    "newline_rows[0, 1] is 8; it must be -1 (padding) or a row b*T + t in [0, 8)": {
        "newline_rows": torch.tensor([[2, 8], [-1, -1]])
    },
    "newline_rows[1, 0] is in sample 0, image_sample[1] is 1;": {"newline_rows": torch.tensor([[2], [3]])},
    "newline_rows names a row twice, or one of token_rows;": {"newline_rows": torch.tensor([[2, 2], [-1, 6]])},
    "newline_rows names a row twice, or one of token_rows; each": {"newline_rows": torch.tensor([[1], [-1]])},
    "grid is (1, 3) and feature_grid is None; give both of them, or neither": {"grid": (1, 3)},
    "cells is given and grid is None": {"cells": torch.tensor([0, 1, 2])},
    "grid is (0, 3); it must be two integers of at least 1": GRIDS | {"grid": (0, 3)},
    "feature_rows is 7; it must be whole tiles of feature_grid (1, 6)": GRIDS | {"feature_rows": 7},
    "cells has shape (2,); it must be (V,) = (3,)": GRIDS | {"cells": torch.tensor([0, 1])},
    "cells must be different cells in [0, 3)": GRIDS | {"cells": torch.tensor([0, 1, 3])},
    "token_rows holds 3 tokens and the grid has 4 cells; give the cells": GRIDS | {"grid": (1, 4)},
    "window_index is not that of the grid": GRIDS,
}


@pytest.mark.parametrize(("words", "fault"), VALUE_FAULTS.items(), ids=VALUE_FAULTS.keys())
def test_tables_that_do_not_fit_are_refused(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        VisionTokenMap(**(TABLES | fault))
    assert str(caught.value).startswith(f"VisionTokenMap: {words}")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("token_rows is torch.float32; it must be torch.int64", {"token_rows": torch.zeros(2, 2)}),
        ("window_index is torch.int16; it must be torch.int32 or torch.int64",
         {"window_index": TABLES["window_index"].short()}),
        ("newline_rows is torch.int32; it must be torch.int64", {"newline_rows": torch.tensor([[2], [6]]).int()}),
        ("image_sample is a list; it must be a torch.Tensor", {"image_sample": [0, 1]}),
        ("window_index is None; it must be a torch.Tensor", {"window_index": None}),
    ],
)  # fmt: skip
def test_what_is_no_integer_table_is_refused(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        VisionTokenMap(**(TABLES | fault))
    assert str(caught.value) == f"VisionTokenMap: {words}"


MASK = torch.tensor([[True] * 4 + [False] * 2, [False] * 2 + [True] * 4])

GRID_FAULTS: dict[str, dict[str, Any]] = {
    "image_mask is torch.int64 of shape (2, 6); it must be a (B, T) tensor of bool": {"image_mask": MASK.long()},
    "image_mask is a list; it must be a (B, T) tensor of bool": {"image_mask": [[True]]},
    "grid is 2; it must be two integers of at least 1": {"grid": 2},
    "feature_grid is (4, 0); it must be two integers of at least 1": {"feature_grid": (4, 0)},
    "sample 0 has 4 image tokens; it must have a multiple of 3, the tokens of a tile of grid (1, 3)": {"grid": (1, 3)},
    "tiles is (1,), 4 tokens of 4 a tile; image_mask has 8": {"tiles": [1]},
    "tiles is 2; it must hold the number of tiles of each image, at least 1": {"tiles": 2},
    "image_mask has shape (0, 6); it must be (B, T) with B and T at least 1": {"image_mask": MASK[:0]},
    "tiles is (1, 0); it must hold the number of tiles of each image, at least 1": {"tiles": [1, 0]},
    "image 0 has tokens in several samples, one of them 1; an image stands in one sample": {"tiles": [2]},
}


@pytest.mark.parametrize(("words", "fault"), GRID_FAULTS.items(), ids=GRID_FAULTS.keys())
def test_masks_that_do_not_fit_their_images_are_refused(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        VisionTokenMap.from_grid(**({"image_mask": MASK, "grid": (2, 2), "feature_grid": (4, 4)} | fault))
    assert str(caught.value) == f"VisionTokenMap.from_grid: {words}"


def slots_with(*cells: tuple[int, int, int]) -> Tensor:
    slots = torch.full((2, 3, 3), -1)
    for i, cell in enumerate(cells):
        slots[i // 3, i % 3] = torch.tensor(cell)
    return slots


SLOT_FAULTS: dict[str, dict[str, Any]] = {
    "slots is torch.int64 of shape (2, 3); it must be a (B, T, 3) tensor of int64": {"slots": slots_with()[..., 0]},
    "slots is torch.int32 of shape (2, 3, 3); it must be a (B, T, 3) tensor of int64": {"slots": slots_with().int()},
    "slots[0, 1] is (0, 2, 0); it must be (-1, -1, -1) or a (tile, row, column) below (2, 2, 2)": {
        "slots": slots_with((0, 0, 0), (0, 2, 0))
    },
    "slots[0, 0] is (0, -1, 0); it must be (-1, -1, -1) or a (tile, row, column) below (2, 2, 2)": {
        "slots": slots_with((0, -1, 0))
    },
    "slots has shape (2, 0, 3); it must be (B, T, 3) with B and T at least 1": {"slots": slots_with()[:, :0]},
    "tiles is None; it must hold the number of tiles of each image, at least 1": {"slots": slots_with(), "tiles": None},
    "slots name one cell twice, at sequence rows 0 and 2 (b*T + t); each cell stands once": {
        "slots": slots_with((1, 0, 0), (0, 0, 0), (1, 0, 0))
    },
    "image 0 has tokens in several samples, one of them 1; an image stands in one sample": {
        "slots": slots_with((0, 0, 0), (-1, -1, -1), (-1, -1, -1), (1, 0, 0))
    },
}


@pytest.mark.parametrize(("words", "fault"), SLOT_FAULTS.items(), ids=SLOT_FAULTS.keys())
def test_slots_that_do_not_fit_are_refused(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        VisionTokenMap.from_slots(**({"grid": (2, 2), "feature_grid": (4, 4), "tiles": [2]} | fault))
    assert str(caught.value) == f"VisionTokenMap.from_slots: {words}"


def test_a_map_made_in_inference_mode_leaves_the_next_one_trainable() -> None:
    mask, attention = torch.ones(1, 4, dtype=torch.bool), LocalCrossAttention(8, (8,), num_heads=1)
    grids = {"grid": (2, 2), "feature_grid": (11, 13)}  # of no other test: what is shared is made here
    with torch.inference_mode():
        VisionTokenMap.from_grid(mask, **grids)
    index = VisionTokenMap.from_grid(mask, **grids).window_index
    attention(torch.randn(4, 8), torch.randn(11 * 13, 8), window_index=index).sum().backward()
    assert attention.key_weight.grad is not None


def test_writing_to_a_maps_windows_changes_no_other_map() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    first, second = (VisionTokenMap.from_grid(mask, grid=(2, 2), feature_grid=(4, 4)) for _ in range(2))
    expected = second.window_index.clone()
    first.window_index.fill_(-1)
    assert torch.equal(second.window_index, expected)
    third = VisionTokenMap.from_grid(mask, grid=(2, 2), feature_grid=(4, 4))
    assert torch.equal(third.window_index, expected)
