"""What stands in an image's slots: the model, its processor and transformers' own packing agree."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from python_tests.models import _llava_vr as tiny
from vr_kernels.compression.projectors import PROJECTORS
from vr_kernels.integrations.vision_remember import EncodedImages, prefill_context
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRProcessor
from vr_kernels.models.llava_vr.configuration_llava_vr import CANVASES
from vr_kernels.models.llava_vr.slots import canvas_of_image, slots_of_images, tokens_of_image
from vr_kernels.nn import VisionRememberConfig
from vr_kernels.ops import window_index_from_grid

TILE = 24
PINPOINTS = [[rows * TILE, columns * TILE] for rows, columns in CANVASES]


def sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Heights and widths from slivers to several tiles."""
    draw = random.Random(seed)
    return [(draw.randint(1, 200), draw.randint(1, 200)) for _ in range(count)]


def configurations() -> list[Any]:
    """Every projector at every window that it can take in a tile of 6x6 patches, on both towers."""
    found = []
    for tower in tiny.TOWERS:
        for name in PROJECTORS:
            for window in (1, 2, 3, 4, 6):
                changes = {"projector_type": name, "vr_window": [window, window], "vr_layers": []}
                try:
                    tiny.config(tower, **changes)
                except ValueError:  # this method has no ragged windows
                    assert 6 % window != 0
                    continue
                found.append(pytest.param(tower, changes, id=f"{tower}-{name}-{window}"))
    return found


@pytest.mark.parametrize(("tower", "changes"), configurations())
def test_the_processor_writes_as_many_placeholders_as_the_model_makes_tokens(
    tower: str, changes: dict[str, Any]
) -> None:
    model = tiny.model(tower, image_grid_pinpoints=PINPOINTS, **changes)
    processor = tiny.processor(model.config)
    drawn = sizes(200)
    slots, tiles = slots_of_images(model.config, model.model.multi_modal_projector, len(drawn), torch.tensor(drawn))
    assert [processor.count_image_tokens(*size) for size in drawn] == [len(table) for table in slots]
    counted = processor._get_num_multimodal_tokens(drawn)["num_image_tokens"]
    assert counted == [len(table) for table in slots]
    few = 4
    with torch.no_grad():
        pixels = torch.randn(few, max(tiles[:few]), 3, TILE, TILE)
        packed = model.model.get_image_features(pixels, torch.tensor(drawn[:few])).pooler_output
    assert [len(image) for image in packed] == counted[:few]


@pytest.mark.parametrize("pinpoints", [PINPOINTS, []], ids=["anyres", "one tile"])
@pytest.mark.parametrize("tower", tiny.TOWERS)
def test_placeholders_of_processed_images_are_filled(tower: str, pinpoints: list[Any]) -> None:
    model = tiny.model(tower, image_grid_pinpoints=pinpoints)
    images = [tiny.image(*size, seed=i) for i, size in enumerate([(40, 60), (5, 90), (24, 24)])]
    inputs = tiny.inputs(tiny.processor(model.config), ["<image> w1", "w2 <image> <image>"], images)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("grid", [(6, 6), (8, 8), (24, 24)])
def test_uncompressed_tokens_are_packed_as_by_llava_next(grid: tuple[int, int]) -> None:
    tile = 4 * grid[0]
    pinpoints = [[rows * tile, columns * tile] for rows, columns in CANVASES]
    host = SimpleNamespace(
        config=SimpleNamespace(
            image_grid_pinpoints=pinpoints, vision_config=SimpleNamespace(image_size=tile, patch_size=4)
        )
    )
    for size in sizes(500, seed=grid[0]):
        canvas = canvas_of_image(size, pinpoints, tile)
        assert canvas is not None
        cells = torch.arange((1 + canvas[0] * canvas[1]) * grid[0] * grid[1]).view(-1, grid[0] * grid[1], 1)
        newline = torch.tensor([-1])
        expected, _ = LlavaNextModel.pack_image_features(host, [cells], [torch.tensor(size)], "full", newline)
        assert torch.equal(tokens_of_image(size, pinpoints, tile, grid), expected[0][:, 0]), size


def test_several_tokens_of_a_cell_follow_each_other() -> None:
    one = tokens_of_image((30, 70), PINPOINTS, TILE, (2, 2))
    three = tokens_of_image((30, 70), PINPOINTS, TILE, (2, 2), tokens_per_cell=3)
    expected = [[-1] if slot < 0 else [3 * slot, 3 * slot + 1, 3 * slot + 2] for slot in one.tolist()]
    assert three.tolist() == [token for tokens in expected for token in tokens]


def windows_read(model: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
    """Which feature rows an image's tokens read, the slots of the tokens, and how many rows there are."""
    slots, tiles = slots_of_images(model.config, model.model.multi_modal_projector, 1, torch.tensor([size]))
    rows = torch.arange(tiles[0] * 36.0).view(tiles[0], 6, 6, 1)
    outputs = EncodedImages(((rows,),), [slots[0][:, None]]).attach(BaseModelOutputWithPooling())
    mask = torch.ones(1, len(slots[0]), dtype=torch.bool)
    blocks = VisionRememberConfig(hidden_size=8, feature_dims=(1,), num_heads=1, layers=("cross_attention",))
    context, _ = prefill_context(mask, outputs, blocks, dtype=torch.float32, grid=model.config.token_grid)
    assert context is not None
    table = context.features[0].flatten() if context.features else torch.empty(0)
    index = context.vision_map.window_index
    return torch.where(index < 0, -1, table[index.clamp(min=0)].long()), context.vision_map.rows, len(table)


@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_the_windows_of_a_square_image_part_all_features(window: int) -> None:
    read, _, rows = windows_read(tiny.model(vr_window=[window, window], image_grid_pinpoints=PINPOINTS), (48, 48))
    assert torch.equal(read[read >= 0].sort().values, torch.arange(rows))


@pytest.mark.parametrize("window", [2, 3, 4])
def test_a_token_reads_the_window_of_the_cell_in_its_slot(window: int) -> None:
    model = tiny.model(vr_window=[window, window], image_grid_pinpoints=PINPOINTS)
    size = (20, 70)
    read, positions, _ = windows_read(model, size)
    slots = tokens_of_image(size, PINPOINTS, TILE, model.config.token_grid)
    windows = window_index_from_grid(6, 6, *model.config.token_grid, batch=5)
    assert torch.equal(read, windows[slots[positions]])
    assert (slots < 0).sum() > 0  # newlines, which read nothing
    assert len(positions) == (slots >= 0).sum()


@pytest.mark.parametrize(("preset", "tokens"), [("v1", 144), ("v2", 64)])
def test_the_presets_have_the_papers_tokens_a_tile(preset: str, tokens: int) -> None:
    config = LlavaVRConfig.preset(preset, image_grid_pinpoints=[])
    processor = LlavaVRProcessor.from_config(config, tiny.tokenizer())
    assert processor.count_image_tokens(300, 700) == config.token_grid[0] * config.token_grid[1] == tokens


def test_pinpoints_that_nobody_names_are_tiles_of_the_tower() -> None:
    assert tiny.config(image_grid_pinpoints=None).image_grid_pinpoints == [
        [24, 48], [48, 24], [48, 48], [72, 24], [24, 72]
    ]  # fmt: skip
