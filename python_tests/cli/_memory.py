"""A call whose peak memory is known."""

from __future__ import annotations

import torch

from vr_kernels.cli.measure.memory import Call


def two_buffers() -> dict[str, Call]:
    def call() -> torch.Tensor:
        held = torch.ones(32 << 20, dtype=torch.uint8) + 1  # two buffers of 32 MiB
        return held[:1].clone()

    return {"call": Call(lambda: None, call)}
