"""What a model saw of an image and where it looked, kept for the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vr_kernels.integrations import capture_features, record_window_attention
from vr_kernels.integrations.encoder import FeatureCapture
from vr_kernels.integrations.vision_remember import WindowAttention
from vr_kernels.models.inference import Assistant


@dataclass(frozen=True)
class Sight:
    """
    Args:
        tiles: (tiles, H, W, 3) uint8, the image as the encoder gets it; None where that is no picture.
        saliency: (tiles, H', W') float32, a number for each of the encoder's features; None where it has none.
        attention: of the model's Vision Remember blocks, by decoder layer.
    """

    tiles: np.ndarray | None
    saliency: Tensor | None
    attention: Mapping[int, WindowAttention]

    @classmethod
    def record(cls, assistant: Assistant, inputs: Mapping[str, Tensor]) -> Sight:
        """In a prefill of its own."""
        tiles = _tiles(assistant.processor.image_processor, inputs["pixel_values"])
        if tiles is None:
            return cls(None, None, {})
        with _recording(assistant.model) as (recorded, capture):
            assistant.generate(dict(inputs), max_new_tokens=1, do_sample=False)
        saliency = None if capture is None else capture.saliency
        return cls(
            tiles,
            None if saliency is None else saliency.float().cpu(),
            {
                layer: WindowAttention(one.weights.cpu(), one.vision_map.to("cpu"))
                for layer, one in recorded.items()
                if one.vision_map.grid is not None
            },
        )

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """(n_h, n_w) vision tokens of a tile, the same for all layers; None where no attention was recorded."""
        for record in self.attention.values():
            return record.vision_map.grid
        return None

    def token_at(self, layer: int, tile: int, cell: int) -> int | None:
        """The number of the vision token in a tile's cell, counted row by row; None where unpadding left it out."""
        cells, grid = self.attention[layer].vision_map.cells, self.token_grid
        assert grid is not None
        wanted = tile * grid[0] * grid[1] + cell
        if cells is None:
            return wanted
        found = (cells == wanted).nonzero()
        return int(found[0]) if len(found) > 0 else None


@contextmanager
def _recording(model: Any) -> Iterator[tuple[Mapping[int, WindowAttention], FeatureCapture | None]]:
    """What the model's blocks attend to, and its encoder's saliency, as far as it has them.

    The saliency is that of its blocks where they read one, else the CLS row's at the level that LLaVA reads.
    """
    with ExitStack() as open_contexts:
        attention: Mapping[int, WindowAttention] = {}
        capture = None
        with suppress(ValueError):  # no block of local attention
            attention = open_contexts.enter_context(record_window_attention(model))
        kind = getattr(model.config, "saliency", None) or "cls"
        level = getattr(model.config, "saliency_level", None) or -2
        with suppress(ValueError):  # no tower of CLIP's kind, or one without CLS row
            capture = open_contexts.enter_context(capture_features(model, level, saliency=kind))
        yield attention, capture


def _tiles(image_processor: Any, pixel_values: Tensor) -> np.ndarray | None:
    """(1, 3, H, W) or (1, tiles, 3, H, W) -> (tiles, H, W, 3) uint8, the processor's normalisation undone."""
    if pixel_values.dim() not in (4, 5) or pixel_values.shape[-3] != 3:
        return None  # patches in a row, as those of Qwen2-VL
    tiles = pixel_values.flatten(0, -4).float().cpu()  # (tiles, 3, H, W)
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
        )
        tiles = tiles * std + mean
    return (255 * tiles).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
