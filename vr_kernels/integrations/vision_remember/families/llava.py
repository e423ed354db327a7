"""LLaVA 1.5: one tile an image, its patches in raster order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vr_kernels.integrations.vision_remember.capture import Capture
from vr_kernels.integrations.vision_remember.families.clip import ClipFamily, one_patch_a_cell
from vr_kernels.integrations.vision_remember.families.family import Layout


class Llava(ClipFamily):
    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        images, height, width = captured.features[0].shape[:3]
        numbers = self.cells(inner, 1, (height, width), arguments.get("vision_feature_select_strategy"))  # (1, N)
        return [one_patch_a_cell(1, (height, width), numbers[0].long())] * images
