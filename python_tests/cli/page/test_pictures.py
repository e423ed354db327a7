"""What a model saw: the tiles that its encoder got, its saliency, and the windows of its vision tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.models import _llava_vr
from vr_kernels import capture_features
from vr_kernels.cli.page import pictures
from vr_kernels.cli.page.sight import Sight
from vr_kernels.integrations import record_window_attention
from vr_kernels.models.inference import Assistant
from vr_kernels.models.prompts import user_message

MODELS: dict[str, dict[str, Any]] = {
    "siglip": {"tower": "siglip", "image_grid_pinpoints": []},
    "clip": {"tower": "clip", "image_grid_pinpoints": []},
    "salient": {"tower": "siglip", "image_grid_pinpoints": [], "vr_saliency": "value"},
    "pooled": {"tower": "clip", "image_grid_pinpoints": [], "vr_layers": []},
    "anyres": {"tower": "clip"},
}


def record(kind: str, image: Any) -> tuple[Sight, Assistant, dict[str, torch.Tensor]]:
    model = _llava_vr.model(**MODELS[kind])
    assistant = Assistant(model, _llava_vr.processor(model.config))
    inputs = assistant.inputs([[user_message("w1 w2", 1)]], [[image]])
    return Sight.record(assistant, inputs), assistant, inputs


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("siglip", ["the image alone", "attention at layer 1", "attention at layer 4"]),
        ("clip", ["the image alone", "saliency", "attention at layer 1", "attention at layer 4"]),
        ("salient", ["the image alone", "saliency", "attention at layer 1", "attention at layer 4"]),
        ("pooled", ["the image alone", "saliency"]),
    ],
)
def test_a_model_has_the_views_of_what_it_has(kind: str, expected: list[str]) -> None:
    sight, *_ = record(kind, _llava_vr.image())
    assert pictures.views(sight) == expected
    for view in expected:
        for token in (0, 1, 4):
            assert pictures.draw(sight, view, 0, token).image.size == (480, 480)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tile_has_the_pixels_that_were_normalised(kind: str) -> None:
    image = _llava_vr.image(_llava_vr.SIDE, _llava_vr.SIDE)  # no pixel of it is resampled
    sight, *_ = record(kind, image)
    assert np.array_equal(sight.tiles, np.asarray(image)[None])


def test_tiles_of_patches_in_a_row_are_no_pictures() -> None:
    _, assistant, inputs = record("siglip", _llava_vr.image())
    sight = Sight.record(assistant, inputs | {"pixel_values": torch.rand(36, 48)})
    assert sight == Sight(None, None, {})
    assert pictures.views(sight) == []


def test_the_weights_and_the_saliency_are_those_of_a_prefill() -> None:
    sight, assistant, inputs = record("anyres", _llava_vr.image())
    with (
        torch.no_grad(),
        record_window_attention(assistant.model) as recorded,
        capture_features(assistant.model, 3, saliency="cls") as captured,
    ):
        assistant.model(**inputs)
    for layer in (1, 4):
        torch.testing.assert_close(sight.attention[layer].weights, recorded[layer].weights)
    torch.testing.assert_close(sight.saliency, captured.saliency)


def test_recording_leaves_no_hook() -> None:
    _, assistant, _ = record("clip", _llava_vr.image())
    tower = assistant.model.model.vision_tower
    assert not any(module._forward_hooks for module in tower.modules())


def coloured(picture: Any) -> np.ndarray:
    """(6, 6), by feature: whether anything of it is not grey."""
    pixels = np.asarray(picture).astype(int)
    colour = (pixels.max(-1) - pixels.min(-1)).reshape(6, 80, 6, 80)
    return colour.max((1, 3)) > 8


def test_a_token_s_window_alone_is_coloured() -> None:
    sight, *_ = record("siglip", _llava_vr.image())
    window = np.zeros((6, 6), bool)
    window[3:, :3] = True  # token 3 of 2x2: row 2, column 1
    for layer in (1, 4):
        assert np.array_equal(coloured(pictures.draw(sight, f"attention at layer {layer}", 0, 3).image), window)
        assert coloured(pictures.draw(sight, f"attention at layer {layer}", 0, 0).image).all()


def test_the_words_name_the_feature_of_the_largest_weight() -> None:
    sight, *_ = record("siglip", _llava_vr.image())
    weights = sight.attention[4].weights[2].mean(0)  # (9,), of the window that starts at row 4, column 1
    row, column = divmod(int(weights.argmax()), 3)
    words = pictures.draw(sight, "attention at layer 4", 0, 3).words
    assert "the vision token in row 2, column 1" in words
    assert f"Most, {float(weights.max()):.2f}, of the feature in row {4 + row}, column {1 + column};" in words
    assert "equal shares of its 9 features would be 0.11" in words


def test_each_tile_has_its_own_tokens() -> None:
    """A wide image on a square canvas: the upper tiles' upper tokens are padding, and not in the prompt."""
    sight, *_ = record("anyres", _llava_vr.image(32, 48))
    assert sight.tiles is not None
    assert len(sight.tiles) == 5
    (cells,) = {
        tuple(one.vision_map.cells.tolist()) for one in sight.attention.values() if one.vision_map.cells is not None
    }
    for tile in range(5):
        for cell in range(4):
            number = sight.token_at(1, tile, cell)
            assert (number is None) == (4 * tile + cell not in cells)
            assert number is None or cells[number] == 4 * tile + cell
    assert 4 + 0 not in cells
    words = pictures.draw(sight, "attention at layer 1", 1, 1).words
    assert words == "Tile 2 of 5: the vision token in row 1, column 1 stands for padding, and is not in the prompt."


@pytest.mark.parametrize(("x", "y", "token"), [(0, 0, 1), (479, 0, 2), (239, 241, 3), (480, 480, 4)])
def test_a_point_of_the_picture_is_in_a_token_s_cell(x: int, y: int, token: int) -> None:
    sight, *_ = record("siglip", _llava_vr.image())
    assert pictures.size_of(sight) == (480, 480)
    assert pictures.cell_at(sight, (480, 480), x, y) == token


def test_a_picture_keeps_the_shape_of_a_tile() -> None:
    sight = Sight(np.zeros((1, 24, 48, 3), np.uint8), torch.ones(1, 2, 4), {})
    for view in pictures.views(sight):
        picture = pictures.draw(sight, view, 0, 0).image
        assert isinstance(picture, Image.Image)
        assert picture.size == pictures.size_of(sight) == (480, 240)
