"""A batch with everything that bites: padding, several images a sample, none, newlines, tiles, unpad, no prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vr_kernels import VisionTokenMap

GRID = (2, 3)  # tokens of a tile
TILES = (1, 2, 1)  # of the three images
WIDTHS, HIDDEN = (6, 10), 12
LENGTH = 24


@dataclass(frozen=True)
class Token:
    """A vision token, by hand: sequence slot (b, t), its image, its cell."""

    sample: int
    slot: int
    image: int
    tile: int
    row: int
    column: int


@dataclass(frozen=True)
class Batch:
    hidden_states: Tensor  # (4, 24, 12)
    tokens: tuple[Token, ...]
    vision_map: VisionTokenMap
    levels: tuple[Tensor, ...]  # (4, H, W, D_l)
    saliency: Tensor  # (4, H, W)
    text_mask: Tensor  # (4, 24)
    newlines: tuple[tuple[int, int, int], ...]  # (sample, slot, image), by hand
    position_ids: Tensor  # (4, 24)

    def to(self, dtype: torch.dtype) -> Batch:
        levels = tuple(level.to(dtype) for level in self.levels)
        saliency = self.saliency.to(dtype)
        return replace(self, hidden_states=self.hidden_states.to(dtype), levels=levels, saliency=saliency)

    @property
    def vision_mask(self) -> Tensor:
        mask = torch.zeros(self.hidden_states.shape[:2], dtype=torch.bool)
        for token in self.tokens:
            mask[token.sample, token.slot] = True
        return mask


def slots_of(*, unpad: bool = False) -> tuple[Tensor, tuple[Token, ...]]:
    """(4, 24, 3) slots and their tokens. Sample 0: three pads, text, image 0, text. 1: text alone. 2: image 1, whose
    tiles stand stitched side by side with a newline a row, then image 2 at once. 3: padding alone."""
    slots = torch.full((4, LENGTH, 3), -1)

    def place(sample: int, t: int, tile: int, row: int, column: int) -> int:
        if unpad and (tile, row, column) in ((1, 0, 0), (2, 0, 2), (3, 1, 1)):
            return t
        slots[sample, t] = torch.tensor([tile, row, column])
        return t + 1

    t = 5
    for row in range(2):
        for column in range(3):
            t = place(0, t, 0, row, column)
    t = 2
    for row in range(2):
        for column in range(6):
            t = place(2, t, 1 + column // 3, row, column % 3)
        t += 1  # newline
    for row in range(2):
        for column in range(3):
            t = place(2, t, 3, row, column)
    images = (0, 1, 1, 2)
    tokens = tuple(
        Token(b, t, images[tile], tile, row, column)
        for b in range(4)
        for t in range(LENGTH)
        for tile, row, column in [slots[b, t].tolist()]
        if tile >= 0
    )
    return slots, tokens


def batch(feature_grid: tuple[int, int] = (4, 9), *, unpad: bool = False, seed: int = 0) -> Batch:
    """Windows of (2, 3) features, or ragged ones over another grid; float64."""
    generator = torch.Generator().manual_seed(seed)
    slots, tokens = slots_of(unpad=unpad)
    vision_map = VisionTokenMap.from_slots(slots, grid=GRID, feature_grid=feature_grid, tiles=TILES)
    places = [token.slot for token in tokens if token.image == 1]
    newlines = tuple((2, t, 1) for t in range(min(places), max(places) + 2) if t not in places)
    newline_rows = torch.full((3, 3), -1)
    newline_rows[1, 1:] = torch.tensor([sample * LENGTH + slot for sample, slot, _ in newlines])
    vision_map = replace(vision_map, newline_rows=newline_rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    text_mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    text_mask[0, 3:5] = text_mask[0, 12:15] = text_mask[1, 4:20] = text_mask[2, 22:] = True
    levels = tuple(random(4, *feature_grid, width) for width in WIDTHS)
    saliency = random(4, *feature_grid).sigmoid()
    hidden_states = random(4, LENGTH, HIDDEN)
    position_ids = torch.randint(0, 500, (4, LENGTH), generator=generator)
    return Batch(hidden_states, tokens, vision_map, levels, saliency, text_mask, newlines, position_ids)
