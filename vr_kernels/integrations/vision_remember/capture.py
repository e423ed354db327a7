"""``BlockCapture``: hidden states of an encoder that is a list of blocks, while the model itself runs it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vr_kernels.integrations._capture_pass import of_this_thread
from vr_kernels.integrations._vision_tower import hidden_state


class Capture(Protocol):
    """A context around one run of an encoder; ``capture_features`` makes another such object."""

    @property
    def features(self) -> tuple[Tensor, ...]:
        """(..., D) a level, whose leading axes are the rows of all images in the encoder's order."""

    @property
    def saliency(self) -> Tensor | None:
        """The same leading axes, or None."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BlockCapture:
    """Levels 0 (what the first block gets) to k (what block k returns) of an encoder's blocks, as the thread that
    entered runs them.

    Args:
        blocks: called one after the other with the hidden states first, which they return alone or first in a tuple.
        levels: none negative. first_row: 1 leaves a CLS row out of (B, 1 + N, D).

    Raises:
        RuntimeError: when the run is trained under reentrant gradient checkpointing, which would cut the gradients.
    """

    saliency = None

    def __init__(self, blocks: nn.ModuleList, levels: Sequence[int], *, first_row: int = 0) -> None:
        self._blocks, self._levels, self._first_row = blocks, tuple(levels), first_row
        self._states: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def features(self) -> tuple[Tensor, ...]:
        return tuple(self._states[level][..., self._first_row :, :] for level in self._levels)

    def __enter__(self) -> BlockCapture:
        recording = torch.is_grad_enabled() and any(p.requires_grad for p in self._blocks.parameters())

        def keep(level: int, state: Tensor) -> None:
            if recording and not torch.is_grad_enabled():
                raise RuntimeError(
                    "vision_remember: the encoder is trained under reentrant gradient checkpointing, which cuts the "
                    "gradients of its features; enable it with gradient_checkpointing_kwargs={'use_reentrant': False}"
                )
            self._states[level] = state

        for level in self._levels:
            if level == 0:
                first = of_this_thread(lambda block, args: keep(0, args[0]))
                hook = self._blocks[0].register_forward_pre_hook(first)
            else:
                after = of_this_thread(lambda block, args, output, level=level: keep(level, hidden_state(output)))
                hook = self._blocks[level - 1].register_forward_hook(after)
            self._handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
