"""``VisionRememberContext``: what the blocks read in one forward pass, handed down as a keyword argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vr_kernels.integrations.vision_remember.encoded import EncodedImages
from vr_kernels.nn import VisionTokenMap

NAME = "vision_remember"  # the keyword argument, and the name of a decoder layer's block
GUIDED = "_vision_remember_guided"  # the attribute of a cache whose image tokens have read the text of their prompt


@dataclass(frozen=True, eq=False)
class VisionRememberContext:
    """The arguments of every ``VisionRemember`` block in one forward pass, beside its hidden states.

    It goes through the model as a keyword argument and never stands on a module, so that beams, checkpointing and
    several threads cannot mix two passes up.
    """

    vision_map: VisionTokenMap
    features: tuple[Tensor, ...] | None  # one a level
    saliency: Tensor | None
    text_mask: Tensor | None  # (B, T)
    position_ids: Tensor | None = None  # (B, T), for blocks with rotary positions

    @property
    def options(self) -> dict[str, Tensor]:
        """What goes to a block by name, where it is there at all."""
        values = {"saliency": self.saliency, "text_mask": self.text_mask, "position_ids": self.position_ids}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> VisionRememberContext:
        """On the device of a layer; accelerate calls it too, where a model lies on several devices."""
        device = torch.device(device)
        if self.vision_map.rows.device == device:
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        features = self.features
        if features is not None:
            features = tuple(level.to(device, non_blocking=non_blocking) for level in features)
        return VisionRememberContext(
            self.vision_map.to(device, non_blocking=non_blocking),
            features,
            moved(self.saliency),
            moved(self.text_mask),
            moved(self.position_ids),
        )


def context_of_images(
    image_mask: Tensor,
    images: EncodedImages,
    *,
    dtype: torch.dtype,
    text_mask: Tensor | None,
    grid: tuple[int, int] | None = None,
    tiles_apart: bool = False,
    newline_keys: bool = False,
    position_ids: Tensor | None = None,
) -> VisionRememberContext:
    """The context of a batch whose images stand, one after the other, at the slots of ``image_mask``.

    Args:
        image_mask: (B, T) bool, all slots that the images fill, newlines included.
        images: as many slots as the mask has.
        dtype: of the hidden states, which the features take; saliency of another becomes at least float32.
        text_mask: (B, T) bool, the prompt's text.
        grid: (n_h, n_w) tokens of a tile, where ``images`` has cells of such a grid.
        newline_keys: whether the blocks read newlines. position_ids: (B, T), where they read those.
        tiles_apart: each of ``images`` is a tile, and those whose slots follow one another are one image.

    Raises:
        ValueError: another number of slots; an image spread over samples; features cut up.
    """
    slots = [len(places) for places in images.places]
    if sum(slots) != int(image_mask.sum()):
        raise ValueError(
            f"vision_remember: the prompt has {int(image_mask.sum())} image tokens and its images have {sum(slots)} "
            f"({', '.join(map(str, slots))}); give it a placeholder for each. A prefill in parts, or a cache that "
            "holds a part of an image, cannot be served"
        )
    device = image_mask.device
    mask = image_mask.cpu()  # tables are built and checked where that costs no synchronisation
    for number, samples in enumerate(mask.nonzero()[:, 0].split(slots)):
        if len(samples) > 0 and samples[0] != samples[-1]:
            raise ValueError(
                f"vision_remember: image {number} has slots from sample {int(samples[0])} to {int(samples[-1])}; "
                "give each sample as many image tokens as its images have"
            )
    places = [table.cpu() for table in images.places]
    if grid is None:
        rows = [len(level) for level in images.levels[0]]
        if any(int(table.max()) >= count for table, count in zip(places, rows, strict=True)):
            raise ValueError(
                "vision_remember: an image's features were cut up; leave prefill_chunk_size out, which does that"
            )
        vision_map = _map_of_windows(mask, places, rows, tiles_apart)
    else:
        tiles = [len(level) for level in images.levels[0]]
        height, width = images.levels[0][0].shape[1:3]
        vision_map = _map_of_cells(mask, places, tiles, grid, (int(height), int(width)))
    facts: dict[str, Any] = {}
    if newline_keys:
        facts["newline_rows"] = _newline_rows(mask, places, vision_map)
    if text_mask is not None:
        facts["text_in_every_sample"] = bool(text_mask.any(1).cpu()[vision_map.image_sample].all())
    if facts:
        vision_map = dataclasses.replace(vision_map, **facts)
    features = tuple(torch.cat(list(level)).to(device, dtype) for level in images.levels)
    saliency = None if images.saliency is None else torch.cat(list(images.saliency)).to(device)
    if saliency is not None and saliency.dtype != dtype:  # of an encoder in another precision than the decoder
        saliency = saliency.to(torch.promote_types(dtype, torch.float32))
    return VisionRememberContext(vision_map.to(device), features, saliency, text_mask, position_ids)


def context_without_images(
    sequence_shape: tuple[int, int],
    device: torch.device,
    *,
    window: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    feature_grid: tuple[int, int] | None = None,
) -> VisionRememberContext:
    """For training alone: the blocks run with no row to change, so that each parameter has a gradient, of zero.

    Args:
        sequence_shape: (B, T) of the pass.
        window: of the blocks' config, as wide as the windows of a map without a grid.
        grid, feature_grid: what the maps of images have, where they have a grid; some interactions need it.
    """
    if grid is not None and feature_grid is not None:
        no_slot = torch.zeros(sequence_shape, dtype=torch.bool)
        vision_map = VisionTokenMap.from_grid(no_slot, grid=grid, feature_grid=feature_grid)
    else:
        rows, width = torch.empty(0, dtype=torch.int64), 1 if window is None else window[0] * window[1]
        windows = rows.new_empty(0, width)
        vision_map = VisionTokenMap(rows.view(0, 1), rows, windows, sequence_shape=sequence_shape, feature_rows=0)
    return VisionRememberContext(vision_map.to(device), None, None, None)


def prompt_text(image_mask: Tensor, *, attention_mask: object = None, prompt_mask: Tensor | None = None) -> Tensor:
    """(B, T) bool, the text that may be pooled into the guide: no padding, no image slot, nothing after the prompt.

    Args:
        image_mask: (B, T) bool. attention_mask: (B, T), 1 at what is no padding; None for no padding.
        prompt_mask: (B, T0 <= T) bool, True in the prompt; None: everything is. What lies past T0 was generated.

    Raises:
        ValueError: a prompt_mask of another form; an attention_mask that does not say which tokens are padding.
    """
    text = ~image_mask
    if prompt_mask is not None:
        if prompt_mask.dtype != torch.bool or prompt_mask.dim() != 2 or not _fits(prompt_mask, text):
            raise ValueError(
                f"vision_remember: prompt_mask is {prompt_mask.dtype} {tuple(prompt_mask.shape)}; it must be (B, T) "
                f"{tuple(text.shape)} of bool, or shorter where the rest was generated"
            )
        missing = text.shape[1] - prompt_mask.shape[1]
        text = text & torch.nn.functional.pad(prompt_mask.to(text.device), (0, missing))
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        text = text & attention_mask[:, -text.shape[1] :].bool()
    elif attention_mask is not None and prompt_mask is None:
        raise ValueError(
            "vision_remember: attention_mask has no (B, T), so that padding cannot be told from text; give prompt_mask "
            "(B, T) as well, True at the prompt's valid tokens"
        )
    return text


def _fits(prompt_mask: Tensor, text: Tensor) -> bool:
    return len(prompt_mask) == len(text) and prompt_mask.shape[1] <= text.shape[1]


def prompt_of_labels(labels: Tensor, attention_mask: object, ignore_index: int = -100) -> Tensor | None:
    """(B, T) bool: what stands before the first supervised token. The answer pooled into the prefix would leak it.

    None where the attention_mask does not say what is padding, which has no label either: ``prompt_text`` then asks.
    """
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
        return None
    return (labels != ignore_index).cumsum(1) == 0


def _map_of_cells(
    mask: Tensor, places: Sequence[Tensor], tiles: Sequence[int], grid: tuple[int, int], feature_grid: tuple[int, int]
) -> VisionTokenMap:
    first = [sum(tiles[:i]) for i in range(len(tiles))]
    per_tile = grid[0] * grid[1]
    parts = []
    for table, tile in zip(places, first, strict=True):
        cell = table[:, 0]
        parts.append(
            torch.stack([cell // per_tile + tile, cell % per_tile // grid[1], cell % grid[1]], 1).masked_fill(
                cell[:, None] < 0, -1
            )
        )
    slots = torch.full((*mask.shape, 3), -1, dtype=torch.int64)
    slots[mask] = torch.cat(parts)
    return VisionTokenMap.from_slots(slots, grid=grid, feature_grid=feature_grid, tiles=tiles)


def _map_of_windows(mask: Tensor, places: Sequence[Tensor], rows: Sequence[int], tiles_apart: bool) -> VisionTokenMap:
    length = mask.shape[1]
    positions = mask.flatten().nonzero().squeeze(1).split([len(table) for table in places])
    token_rows: list[Tensor] = []  # of each image
    samples: list[Tensor] = []
    windows: list[Tensor] = []
    first, after = 0, -1
    for position, table, count in zip(positions, places, rows, strict=True):
        is_token = (table >= 0).any(1)
        window = table[is_token]
        windows.append(torch.where(window < 0, -1, window + first))
        first += count
        sample = position[0] // length
        if tiles_apart and int(position[0]) == after and sample == samples[-1]:
            token_rows[-1] = torch.cat([token_rows[-1], position[is_token]])
        else:
            token_rows.append(position[is_token])
            samples.append(sample)
        after = int(position[-1]) + 1
    width = max(window.shape[1] for window in windows)
    return VisionTokenMap(
        torch.nn.utils.rnn.pad_sequence(token_rows, batch_first=True, padding_value=-1),
        torch.stack(samples),
        torch.cat([torch.nn.functional.pad(window, (0, width - window.shape[1]), value=-1) for window in windows]),
        sequence_shape=(mask.shape[0], length),
        feature_rows=first,
    )


def _newline_rows(mask: Tensor, places: Sequence[Tensor], vision_map: VisionTokenMap) -> Tensor:
    """(I, M), the slots of each of the map's images that are no vision tokens."""
    image_of_row = torch.full((mask.numel(),), -1, dtype=torch.int64)
    for image, rows in enumerate(vision_map.token_rows):
        image_of_row[rows[rows >= 0]] = image
    newlines: list[list[Tensor]] = [[] for _ in vision_map.token_rows]
    for rows, table in zip(mask.flatten().nonzero()[:, 0].split([len(p) for p in places]), places, strict=True):
        is_token = (table >= 0).any(1)
        if is_token.any():  # else nobody reads the image's newlines
            newlines[int(image_of_row[rows[is_token][0]])].append(rows[~is_token])
    return torch.nn.utils.rnn.pad_sequence([torch.cat(parts) for parts in newlines], batch_first=True, padding_value=-1)
