"""Joins samples of different lengths, tiles and numbers of images to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vr_kernels.models.inference import IGNORED


@dataclass(frozen=True)
class ConversationCollator:
    """Pads on the right. ``pad_token_id`` is any valid token: attention_mask hides it.

    >>> sample = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([-100, 6])}
    >>> batch = ConversationCollator(0)([sample, {name: tensor[1:] for name, tensor in sample.items()}])
    >>> batch["input_ids"].tolist(), batch["labels"].tolist(), batch["attention_mask"].tolist()
    ([[5, 6], [6, 0]], [[-100, 6], [6, -100]], [[1, 1], [1, 0]])
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Batches what ``ChatEncoder`` makes.

        Returns:
            input_ids, labels and attention_mask (B, T); and where a sample has images, those of all samples in their
            order, pixel_values (images, tiles, 3, H, W), with zeros for tiles that an image lacks, or (images, 3, H, W)
            without AnyRes, and image_sizes (images, 2) if the samples have them.
        """
        masks = [torch.ones_like(sample["input_ids"]) for sample in samples]
        batch = {
            "input_ids": _pad([sample["input_ids"] for sample in samples], self.pad_token_id),
            "labels": _pad([sample["labels"] for sample in samples], IGNORED),
            "attention_mask": _pad(masks, 0),
        }
        images = [image for sample in samples for image in sample.get("pixel_values", ())]
        if images:
            batch["pixel_values"] = pad_sequence(images, batch_first=True)  # along tiles
        if sizes := [sample["image_sizes"] for sample in samples if "image_sizes" in sample]:
            batch["image_sizes"] = torch.cat(sizes)
        return batch


def _pad(rows: list[Tensor], filling: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=filling)
