"""LLaVA-NeXT: a base tile, then the other tiles stitched, unpadded and with a newline after each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vr_kernels.integrations.vision_remember.capture import Capture
from vr_kernels.integrations.vision_remember.families.clip import ClipFamily, one_patch_a_cell, packed_cells
from vr_kernels.integrations.vision_remember.families.family import Layout


class LlavaNext(ClipFamily):
    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        grid = (captured.features[0].shape[1], captured.features[0].shape[2])
        strategy = arguments.get("vision_feature_select_strategy")
        strategy = inner.config.vision_feature_select_strategy if strategy is None else strategy
        layouts = []
        for size, tiles in zip(arguments["image_sizes"], self.tiles(inner, arguments), strict=True):

            def pack(numbers: Tensor, newline: Tensor, size: Any = size) -> Tensor:
                images, _ = inner.pack_image_features([numbers], [size], strategy, newline)
                return images[0]  # type: ignore[no-any-return]

            numbers = self.cells(inner, tiles, grid, strategy)
            layouts.append(one_patch_a_cell(tiles, grid, packed_cells(pack, numbers)))
        return layouts

    def tiles(self, inner: Any, arguments: Mapping[str, Any]) -> list[int]:
        """How many each image has."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        pinpoints, side = inner.config.image_grid_pinpoints, inner.config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, side) for size in arguments["image_sizes"]]
