"""LLaVA-OneVision: as LLaVA-NeXT, but grids over a limit are interpolated (refused), and images in company have one
tile. Videos, whose frames are interpolated too, are refused with all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vr_kernels.integrations.vision_remember.capture import Capture
from vr_kernels.integrations.vision_remember.families.clip import ClipFamily, one_patch_a_cell, packed_cells
from vr_kernels.integrations.vision_remember.families.family import Layout


class LlavaOnevision(ClipFamily):
    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        grid = (captured.features[0].shape[1], captured.features[0].shape[2])
        limit = arguments.get("vision_aspect_ratio")
        limit = inner.config.vision_aspect_ratio if limit is None else limit
        layouts = []
        for size, tiles in zip(arguments["image_sizes"], self.tiles(inner, arguments), strict=True):

            def pack(numbers: Tensor, newline: Tensor, size: Any = size) -> Tensor:
                images, _ = inner.pack_image_features([numbers], [size], newline, limit)
                return images[0]  # type: ignore[no-any-return]

            numbers = self.cells(inner, tiles, grid, arguments.get("vision_feature_select_strategy"))
            layouts.append(one_patch_a_cell(tiles, grid, packed_cells(pack, numbers)))
        return layouts

    def tiles(self, inner: Any, arguments: Mapping[str, Any]) -> list[int]:
        """How many each image has; one where a sample has several images."""
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        sizes, company = arguments["image_sizes"], arguments.get("batch_num_images")
        alone = [True] * len(sizes) if company is None else [count == 1 for count in company for _ in range(int(count))]
        pinpoints, side = inner.config.image_grid_pinpoints, inner.config.vision_config.image_size
        return [
            image_size_to_num_patches(size, pinpoints, side) if single else 1
            for size, single in zip(sizes, alone, strict=True)
        ]
