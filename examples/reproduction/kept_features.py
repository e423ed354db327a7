"""What the frozen encoder makes of a training's images, kept on disk for the other rows of the seed.

All rows of a seed see the same batches, and the encoder takes a third of a small model's training step or more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.reproduction.rows import LEVELS


def can_keep(config: Any) -> bool:
    """Whether a model reads nothing of the encoder but the levels that are kept; saliency is made within a block."""
    return set(config.captured_levels) <= set(LEVELS) and config.vr_saliency == "none"


@contextmanager
def kept_features(tower: nn.Module, folder: Path) -> Iterator[None]:
    """Inside, the tower's blocks give back what ``folder`` holds of a batch, and compute and keep what it does not.

    The numbers are the encoder's own, bit for bit. A batch is known by its pixels and has a file of its own, which
    appears whole or not at all: several processes may share the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch = _Batch()
    blocks: Any = tower.encoder.layers  # type: ignore[union-attr]
    hooks = [
        tower.register_forward_pre_hook(lambda _, arguments: batch.begin(folder, arguments[0])),
        tower.register_forward_hook(lambda *_: batch.end()),
    ]
    for i, block in enumerate(blocks):
        block.forward = batch.instead_of(block.forward, i + 1)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            del block.forward  # and with it what stands before the class's own


class _Batch:
    """The batch that the tower is at: its file, its levels, and whether they were there."""

    path: Path
    levels: dict[int, Tensor]
    known: bool

    def begin(self, folder: Path, pixels: Tensor) -> None:
        self.path = folder / f"{hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()}.pt"
        self.known = self.path.exists()
        # With their strides, by which torch chooses how to compute with them, to the last bit.
        self.levels = torch.load(self.path, map_location=pixels.device, weights_only=True) if self.known else {}

    def instead_of(self, compute: Callable[..., Tensor], level: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if self.known:
                return self.levels.get(level, hidden_states)  # nobody reads the levels in between
            output = compute(hidden_states, *arguments, **options)
            if level in LEVELS:
                self.levels[level] = output.detach()
            return output

        return forward

    def end(self) -> None:
        if not self.known:
            whole = self.path.with_suffix(f".{os.getpid()}")
            torch.save(self.levels, whole)
            whole.rename(self.path)
