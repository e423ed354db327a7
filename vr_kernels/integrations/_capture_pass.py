"""What ``capture_features`` gathers while a tower runs, and whose runs a hook sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def of_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
    """The same hook, which does nothing in other threads: they may run the module meanwhile, for images of theirs."""
    thread = threading.get_ident()

    def own(*args: Any) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() == thread:  # a graph knows of no thread
            hook(*args)

    return own


class Pass:
    """One forward pass of the tower, while it runs."""

    def __init__(self, count: int, *, recording: bool) -> None:
        self.recording = recording
        self.grid = (0, 0)
        self.places: set[int] = set()  # of the levels that came by
        self.states: list[Tensor | None] = [None] * count
        self.buffer: Tensor | None = None
        self.projected: dict[str, Tensor] = {}

    def write(self, place: int, patches: Tensor) -> None:
        """Level number ``place`` into its columns of the buffer; the state itself may go."""
        batch, rows, width = patches.shape
        if self.buffer is None:
            self.buffer = patches.new_empty(batch, rows, len(self.states) * width)
        self.buffer[..., place * width : (place + 1) * width] = patches

    def missing(self, levels: Sequence[int], *, saliency: bool) -> list[str]:
        """What should have come by and did not."""
        states = [f"hidden_states[{level}]" for place, level in enumerate(levels) if place not in self.places]
        return states + [name for name in ("query", "key") if saliency and name not in self.projected]

    def levels(self) -> list[Tensor]:
        """The buffer's columns, level by level."""
        assert self.buffer is not None
        return list(self.buffer.chunk(len(self.states), -1))
