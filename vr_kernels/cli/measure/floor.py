"""The floor: no implementation takes less time than the operations and the bytes that it cannot avoid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vr_kernels.cli.measure.cases import Case


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best: operations and bytes a second."""

    flops: float
    bandwidth: float
    source: str


# A published H200 with dense matrices and full clocks.
_H200_FLOPS = {"float32": 67e12, "bfloat16": 790e12, "float16": 790e12}


def h200(dtype: str) -> Ceilings:
    return Ceilings(_H200_FLOPS[dtype], 4.8e12, "arithmetic for an H200, nothing was measured")


def operations(case: Case) -> float:
    """Forward, a query: u = W_k^T q and o = W_v g (2 C E each); scores and pooling (2 h K C each).

    Backward with frozen features: dg, dW_v, dq and dW_k (2 C E each); dp and du (2 h K C each).
    """
    square, pooled = case.channels**2, case.heads * case.keys * case.channels
    forward, backward = 4 * square + 4 * pooled, 8 * square + 4 * pooled
    return case.queries * float(forward + backward if case.backward else forward)


def bytes_moved(case: Case) -> float:
    """Inputs, weights and output once each; with a backward pass also the output's gradient and three gradients."""
    tokens, weights = case.queries * case.channels, 2 * case.channels**2
    features = case.images * case.grid**2 * case.channels
    once = features + weights + 2 * tokens
    if case.backward:
        once += 2 * tokens + weights
    return float(once * case.torch_dtype.itemsize)


def floor(case: Case, ceilings: Ceilings) -> float:
    """Seconds: the larger of the two times."""
    return max(operations(case) / ceilings.flops, bytes_moved(case) / ceilings.bandwidth)


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
