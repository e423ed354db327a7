"""Each token reads the features that the model itself makes it of: held to the model's own projector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels.integrations.vision_remember import EncodedImages
from vr_kernels.integrations.vision_remember.context import context_of_images
from vr_kernels.integrations.vision_remember.families import Layout
from vr_kernels.integrations.vision_remember.families.family import places
from vr_kernels.nn import VisionTokenMap

DEPTH = 3  # of every encoder

# From the inner model and the features in each token's window (V, K, D) to its tokens (V, D_t).
PROJECTORS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "internvl": lambda inner, window: inner.multi_modal_projector(inner.vision_tower.layernorm(window).flatten(1)),
    "llava": lambda inner, window: inner.multi_modal_projector(window[:, 0]),
    "qwen": lambda inner, window: inner.visual.merger(window.flatten(0, 1)),
}


def encoded(kind: str, numbers: list[int], model: Any = None, **options: Any) -> tuple[Any, EncodedImages, Any]:
    """The inner model, what it encodes of images, and its own output."""
    inner = (model or tiny.patched(kind, levels=(DEPTH,), **options)).model
    if "vision_feature_layer" in inner.config.to_dict():
        inner.config.vision_feature_layer = -1  # the tokens are made of the level that is captured
    with torch.no_grad():
        outputs = inner.get_image_features(**tiny.images(kind, numbers), return_dict=True)
    images, plain = EncodedImages.detach(outputs, 1, saliency=False)
    return inner, images, plain


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_window_projected_is_the_token(kind: str) -> None:
    inner, images, outputs = encoded(kind, [0, 1, 2])
    project = PROJECTORS[kind if kind in PROJECTORS else kind.split("_")[0].rstrip("2345")]
    newlines = 0
    for features, table, tokens in zip(images.levels[0], images.places, outputs.pooler_output, strict=True):
        assert len(table) == len(tokens)
        real = (table >= 0).all(1)
        newlines += int((~real).sum())
        with torch.no_grad():
            torch.testing.assert_close(tokens[real], project(inner, features[table[real]]))
        if not real.all():
            assert torch.equal(tokens[~real], inner.image_newline.expand_as(tokens[~real]))
    assert (newlines > 0) == (kind in ("llava_next", "llava_onevision"))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_windows_partition_the_features(kind: str) -> None:
    _, images, _ = encoded(kind, [0, 1, 2])
    for features, table in zip(images.levels[0], images.places, strict=True):
        read = table[table >= 0].sort().values
        assert torch.equal(read, read.unique())
        if kind not in ("llava_next", "llava_onevision"):  # which drop the patches of padding
            assert torch.equal(read, torch.arange(len(features)))


def test_qwen_25_captures_in_another_order_than_it_merges() -> None:
    """Else the tests above could not tell."""
    _, images, _ = encoded("qwen2_5_vl", [2])
    assert not torch.equal(images.places[0].flatten(), torch.arange(images.places[0].numel()))


def test_a_window_of_qwen_is_a_square_of_the_image() -> None:
    """Through the real image processor and the patch embedding, whose weights make each feature its patch's place."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model = tiny.patched("qwen2_5_vl", levels=(0,))
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight.fill_(1 / (3 * 2 * 4 * 4))  # the mean of a patch
    height, width = 10, 8  # patches
    patches = torch.arange(height * width, dtype=torch.uint8).view(height, width)
    pixels = patches.repeat_interleave(4, 0).repeat_interleave(4, 1)[..., None].expand(-1, -1, 3)
    processor: Any = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, do_resize=False, do_rescale=False, do_normalize=False
    )
    given = processor([Image.fromarray(pixels.numpy())], return_tensors="pt")
    with torch.no_grad():
        outputs = model.model.get_image_features(**given, return_dict=True)
    images, _ = EncodedImages.detach(outputs, 1, saliency=False)
    read = images.levels[0][0][images.places[0]][..., 0].round().long()  # (tokens, 4)
    squares = patches.long().view(height // 2, 2, width // 2, 2).transpose(1, 2).flatten(2).flatten(0, 1)
    assert torch.equal(read, squares)


def test_a_neighborhood_reaches_the_cells_around_and_no_other_grid() -> None:
    windows = torch.arange(2 * 3 * 4 * 2).view(2, 3, 4, 2)  # two grids of 3x4 cells, two features each
    cells = torch.tensor([-1, *range(24)])
    table = places(Layout(windows, cells), (1, 2))
    assert table.shape == (25, 2 * 3 * 5)
    assert (table[0] == -1).all()
    for cell in range(24):
        grid, row, column = cell // 12, cell // 4 % 3, cell % 4
        around = windows[grid, max(row - 1, 0) : row + 2, max(column - 2, 0) : column + 3].flatten()
        read = table[cell + 1]
        assert torch.equal(read[read >= 0].sort().values, around.sort().values)


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl", "internvl"])
def test_a_neighborhood_changes_what_blocks_do(kind: str) -> None:
    near, far = tiny.patched(kind), tiny.patched(kind, neighborhood=(1, 1), window_position="learned")
    inputs = tiny.batch(near, kind, [[0], []])
    moved = (near(**inputs).logits - far(**inputs).logits).abs().amax((1, 2))
    assert moved[0] > 1e-3
    assert moved[1] == 0


def test_tiles_of_one_image_of_internvl_are_one_image() -> None:
    model, maps = tiny.patched("internvl"), []
    tiny.blocks(model)[0].register_forward_pre_hook(lambda block, args: maps.append(args[1]))
    model(**tiny.batch(model, "internvl", [[1, 2], [0]]))  # images of two and three tiles, and of one
    found: VisionTokenMap = maps[0]
    assert found.image_sample.tolist() == [0, 0, 1]
    assert (found.token_rows >= 0).sum(1).tolist() == [8, 12, 4]


def test_tiles_at_the_ends_of_neighbouring_rows_are_two_images() -> None:
    mask = torch.tensor([[False, True], [True, False]])
    one_token = torch.zeros(1, 1, dtype=torch.int64)
    tiles = EncodedImages(([torch.ones(1, 4), torch.ones(1, 4)],), [one_token, one_token])
    found = context_of_images(mask, tiles, dtype=torch.float32, text_mask=None, tiles_apart=True).vision_map
    assert found.image_sample.tolist() == [0, 1]
    assert found.token_rows.tolist() == [[1], [2]]


def test_a_grid_that_onevision_interpolates_is_refused() -> None:
    model = tiny.patched("llava_onevision")
    inputs = tiny.batch(model, "llava_onevision", [[0]])
    model.model.config.vision_aspect_ratio = "anyres_max_1"
    with pytest.raises(ValueError, match="resizes this image's grid"):
        model(**inputs)


def test_images_of_onevision_in_company_have_one_tile() -> None:
    model = tiny.patched("llava_onevision")
    inner = model.model
    given = tiny.images("llava_onevision", [0, 1])
    outputs = inner.get_image_features(**given, batch_num_images=torch.tensor([2]), return_dict=True)
    images, _ = EncodedImages.detach(outputs, 2, saliency=False)
    assert [table.squeeze(1).tolist() for table in images.places] == [[*range(9), -1]] * 2
    assert [len(level) for level in images.levels[0]] == [9, 9]


@pytest.mark.parametrize(("tower", "kept"), [("clip", 1), ("siglip", 0)])
def test_a_row_of_the_class_that_llava_keeps_is_no_vision_token(tower: str, kept: int) -> None:
    model = tiny.model("llava", tower=tower, vision_feature_select_strategy="full")
    tiny.apply_vision_remember(model, layers=(1,), levels=(2,), num_heads=4)
    outputs = model.model.get_image_features(**tiny.images("llava", [0]), return_dict=True)
    images, _ = EncodedImages.detach(outputs, 1, saliency=False)
    assert images.places[0].squeeze(1).tolist() == [-1] * kept + list(range(9))
