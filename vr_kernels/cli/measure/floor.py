"""The floor: no implementation takes less time than the operations and the bytes that it cannot avoid."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best: operations and bytes a second."""

    flops: float
    bandwidth: float
    source: str

    def floor(self, operations: float, moved: float) -> float:
        """Seconds: the larger of the two times."""
        return max(operations / self.flops, moved / self.bandwidth)


# A published H200 with dense matrices and full clocks.
_H200_FLOPS = {"float32": 67e12, "bfloat16": 790e12, "float16": 790e12}


def h200(dtype: str) -> Ceilings:
    return Ceilings(_H200_FLOPS[dtype], 4.8e12, "arithmetic for an H200, nothing was measured")


class Probe:
    """A large matrix product and a large copy. They run in every round beside the contenders, so that what slows the
    machine slows its ceilings too."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.size, elements = (8192, 1 << 28) if device == "cuda" else (2048, 1 << 26)
        self.a, self.b = (torch.randn(self.size, self.size, device=device).to(dtype) for _ in range(2))
        self.product = torch.empty_like(self.a)
        self.source, self.target = torch.ones(elements, device=device), torch.zeros(elements, device=device)

    def multiply(self) -> None:
        torch.mm(self.a, self.b.T, out=self.product)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def ceilings(self, multiply_seconds: float, copy_seconds: float) -> Ceilings:
        """Bytes are counted read and written."""
        source = f"measured here: GEMM of {self.size}, copy of {self.source.nbytes >> 20} MiB"
        return Ceilings(2 * self.size**3 / multiply_seconds, 2 * self.source.nbytes / copy_seconds, source)
