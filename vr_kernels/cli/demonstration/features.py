"""A photograph as AnyRes tiles, and what a vision transformer makes of them: levels, saliency, zipped tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from vr_kernels import VisionZip, capture_features

DOMINANT, CONTEXTUAL = 54, 10  # VisionZip's smallest budget
PATCH, GRID = 16, 24
PIXELS = PATCH * GRID  # SigLIP-L/16-384: 24x24 patches a tile


@dataclass(frozen=True)
class Size:
    """Of the vision transformer, and of what is asked of it."""

    width: int
    layers: int
    tiles: int


FULL = Size(width=1024, layers=24, tiles=5)  # Vision Remember v2's encoder, one base tile and four more
QUICK = Size(width=64, layers=6, tiles=1)


class Encoded(NamedTuple):
    levels: list[Tensor]  # three of (tiles, 24, 24, width): hidden states 7, 15 and 23, as Vision Remember v2
    saliency: Tensor  # (tiles, 24, 24): attention received in the block of the last level, for SigLIP has no CLS token
    zipped: Tensor  # (24, 24) of the whole photograph: which of VisionZip's tokens a patch is, or is part of


def photograph() -> Tensor:
    """The portrait of Eileen Collins that scikit-image ships (NASA, public domain): (3, 512, 512), 0 to 1."""
    pixels = np.asarray(data.astronaut())  # type: ignore[no-untyped-call]
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def resized(image: Tensor, pixels: int) -> Tensor:
    size = (pixels, pixels)
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def tiles_of(image: Tensor, count: int) -> Tensor:
    """The whole image, then the quarters of an enlarged one, as SigLIP takes them: (tiles, 3, 384, 384), -1 to 1."""
    quarters = resized(image, 2 * PIXELS).unfold(1, PIXELS, PIXELS).unfold(2, PIXELS, PIXELS)  # (3, 2, 2, 384, 384)
    tiles = [resized(image, PIXELS), *quarters.permute(1, 2, 0, 3, 4).flatten(0, 1)]
    return 2 * torch.stack(tiles[:count]) - 1


def make_encoder(size: Size) -> SiglipVisionModel:
    """SigLIP's architecture with random weights, the same ones each time."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=16,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


def encode(image: Tensor, size: Size, tell: Callable[[str], None]) -> Encoded:
    tell(f"making {size.layers} layers of width {size.width} with random weights")
    encoder = make_encoder(size)
    by_tile, saliency, tiles = [], [], tiles_of(image, size.tiles)
    thirds = [size.layers * third // 3 - 1 for third in (1, 2, 3)]
    with torch.inference_mode(), capture_features(encoder, thirds, saliency="received") as captured:
        for tile in tiles.split(1):
            encoder(pixel_values=tile)
            assert captured.saliency is not None
            by_tile.append(captured.features)
            saliency.append(captured.saliency)
            tell(f"tile {len(by_tile)} of {size.tiles} encoded")
    tell("zipping its tokens")
    with torch.inference_mode():
        zipped = VisionZip(encoder, DOMINANT, CONTEXTUAL)(tiles[:1])
    levels = [torch.cat(level) for level in zip(*by_tile, strict=True)]
    return Encoded(levels, torch.cat(saliency), zipped.assignment.view(GRID, GRID))
