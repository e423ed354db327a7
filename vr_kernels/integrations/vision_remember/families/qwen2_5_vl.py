"""Qwen2.5-VL: as Qwen2-VL, but groups are sorted by attention windows before the blocks, and back after the merger."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.integrations.vision_remember.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    def captured_rows(self, inner: Any, grid_thw: Tensor) -> Tensor:
        from transformers.vision_utils import get_vision_window_index

        visual, patches = inner.visual, super().captured_rows(inner, grid_thw)
        order, _ = get_vision_window_index(
            grid_thw.cpu(),
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        moved = visual.permute_input_for_window_attn(patches[:, None], order, seq_len=len(patches))  # (patches, 1)
        return torch.argsort(moved.squeeze(1))
