"""The fused products of local cross-attention by csrc/cuda: ``ops.local_cross_attention.fused.FusedKernel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._cuda import Launcher, readable
from vr_kernels.ops._layout import unit_inner
from vr_kernels.ops._native import address
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._window_native import rows, struct

# Of partial sums of the scores, half of what a call may take: with more of them more blocks run at once, and each block
# has fewer channels.
PARTIAL_BYTES = 8 << 20
CHUNK = 64  # channels that a block of the scores takes at least: csrc/cuda/local_cross_attention_scores.cu


class CudaFusedKernel(Launcher):
    """u, g and their gradients stay in registers and shared memory.

    ``scores`` takes no shift of a norm, which would cancel in the softmax; ``outer`` takes neither shift nor scale.
    """

    def statistics(self, problem: WindowProblem) -> Tensor:
        problem = readable(problem)
        first = problem.keys[0]
        statistics = first.new_empty(problem.windows.row_count, len(problem.keys), 2, dtype=torch.float32)
        block = first.new_empty(0, 1, 0)  # of no query
        self.library().cuda_local_cross_attention_statistics(
            struct(problem, block), address(statistics), self.stream(first)
        )
        return statistics

    def scores(self, problem: WindowProblem, x: Tensor, weight: Tensor, out: Tensor) -> None:
        problem, x, weight = readable(problem), unit_inner(x), unit_inner(weight)
        assert problem.norm is None or problem.norm.bias is None
        parts = _parts(out, weight.shape[-1])
        sums = out.unsqueeze(0) if parts == 1 else out.new_empty(parts, *out.shape)  # (parts, N, h, K)
        self.library().cuda_local_cross_attention_scores(
            struct(problem, x),
            _norm(problem),
            rows(x),
            rows(weight),
            x.shape[-1],
            rows(sums[0]),
            parts,
            sums.stride(0),
            self.stream(x),
        )
        if parts > 1:
            torch.sum(sums, 0, out=out)

    def project(self, problem: WindowProblem, a: Tensor, weight: Tensor, out: Tensor) -> None:
        problem, weight = readable(problem), unit_inner(weight)
        self.library().cuda_local_cross_attention_project(
            struct(problem, out),
            _norm(problem),
            rows(a),
            rows(weight),
            out.shape[-1],
            rows(out),
            self.stream(out),
        )

    def outer(self, problem: WindowProblem, x: Tensor, a: Tensor, out: Tensor) -> None:
        problem, x = readable(problem), unit_inner(x)
        assert problem.norm is None or (problem.norm.weight is None and problem.norm.bias is None)
        factors = None
        if x.dtype == torch.float16 and len(a) > 0:
            # What a pools is rounded to float16, which a loss scale in it would overflow.
            factors = a.abs().sum(-1).amax(0)  # (h,)
            factors = torch.where(factors > 0, factors, 1.0)
            a = a / factors.unsqueeze(-1)
        self.library().cuda_local_cross_attention_outer(
            struct(problem, x),
            _norm(problem),
            rows(x),
            rows(a),
            x.shape[-1],
            address(factors),
            rows(out),
            self.stream(x),
        )


def _parts(out: Tensor, channels: int) -> int:
    """Into how many parts of nearly equal size the channels are divided."""
    most = max(1, PARTIAL_BYTES // max(1, out.numel() * out.element_size()))
    chunks = max(1, channels // CHUNK)
    chunks_a_part = -(-chunks // most)
    return -(-chunks // chunks_a_part)


def _norm(problem: WindowProblem) -> tuple[Any, ...]:
    """Addresses of LayerNorm's statistics, gamma and beta."""
    norm = problem.norm
    return (0, 0, 0) if norm is None else (address(norm.statistics), address(norm.weight), address(norm.bias))
