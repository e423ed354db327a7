"""Random calls of the three fused products, and what they are in plain PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests._cases import randn, random_index
from python_tests.cuda._shapes import WIDTHS
from vr_kernels.ops._cuda_fused import CudaFusedKernel
from vr_kernels.ops._window_kernel import FeatureNorm, WindowProblem
from vr_kernels.ops._windows import Windows, gather_windows
from vr_kernels.ops.local_cross_attention.features import joined_features

# Around the queries and the rows and terms of W that blocks take at once: 32, 64 and 128.
COUNTS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129]
HEADS = [1, 2, 3, 4, 5]
EPS = 1e-5


@dataclass(frozen=True)
class Operands:
    """What the products take; ``problem.keys`` are levels (*rows, 1, D)."""

    problem: WindowProblem
    x: Tensor  # (N, h, d)
    weight: Tensor  # (h, d, C)
    a: Tensor  # (N, h, K) float32

    def map(self, change: Callable[[Tensor], Tensor]) -> Operands:
        norm = self.problem.norm
        if norm is not None:
            weight, bias = (None if t is None else change(t) for t in (norm.weight, norm.bias))
            norm = replace(norm, weight=weight, bias=bias)
        problem = replace(self.problem, keys=[change(level) for level in self.problem.keys], norm=norm)
        return Operands(problem, change(self.x), change(self.weight), change(self.a))


def draw(seed: int, dtype: torch.dtype, **fixed: Any) -> Operands:
    rng, g = random.Random(f"product {seed}"), torch.Generator().manual_seed(seed)
    spec = {
        "count": rng.choice(COUNTS),
        "slots": rng.choice([1, 2, 4, 6, 9, 9, 12, 16]) if rng.random() < 0.85 else rng.randint(17, 64),
        "heads": rng.choice(HEADS),
        "width": rng.choice(COUNTS),
        "widths": rng.choices(WIDTHS, k=rng.randint(1, 3)),
        "norm": rng.choice([None, "all", "level"]),
        "indexed": rng.random() < 0.5,
        "peaked": rng.choice([0.1, 1.0, 5.0]),
    } | fixed  # fmt: skip
    count, slots, heads, widths = spec["count"], spec["slots"], spec["heads"], spec["widths"]
    if spec["indexed"]:
        rows: tuple[int, ...] = (rng.randint(1, 2 * count),)
        windows = Windows((count,), rows, None, slots)
        index = random_index(g, count, slots, rows[0])
    else:
        across = rng.choice([n for n in range(1, count + 1) if count % n == 0])
        side = rng.choice([n for n in range(1, slots + 1) if slots % n == 0])
        rows = (1, count // across * side, across * (slots // side))
        windows, index = Windows((1, count // across, across), rows, (side, slots // side), slots), None
    levels = [(randn(g, *rows, 1, width) * (1 + i) + i / 2).to(dtype) for i, width in enumerate(widths)]
    norm = None
    if spec["norm"] is not None:
        gamma, beta = 1 + randn(g, sum(widths), scale=0.5), randn(g, sum(widths), scale=0.5)
        norm = FeatureNorm(gamma, beta, EPS, spec["norm"] == "level")
    a = randn(g, count, heads, slots, scale=spec["peaked"])
    if index is not None:
        a = a.masked_fill((index < 0).unsqueeze(1), 0.0)
    x = randn(g, count, heads, spec["width"], dtype=dtype, scale=spec["peaked"])
    weight = randn(g, heads, spec["width"], sum(widths), dtype=dtype, scale=sum(widths) ** -0.5)
    return Operands(WindowProblem(windows, levels, (), 1.0, index, norm=norm), x, weight, a)


def with_norm(problem: WindowProblem, scale: bool, shift: bool) -> WindowProblem:
    """The problem with as much of its norm's affine as a product takes."""
    norm = problem.norm
    if norm is None:
        return problem
    return replace(
        problem, norm=replace(norm, weight=norm.weight if scale else None, bias=norm.bias if shift else None)
    )


# Each product by a backend's kernel, and by keys and values that are projected, in the dtype of the operands.


def scores(kernel: CudaFusedKernel, operands: Operands) -> Tensor:
    problem = measured(kernel, with_norm(operands.problem, True, False))
    out = torch.empty_like(operands.a)
    kernel.scores(problem, operands.x, operands.weight, out)
    return out


def plain_scores(operands: Operands) -> Tensor:
    window = window_rows(with_norm(operands.problem, True, False))  # (N, K, C)
    key = torch.einsum("nkc,hdc->nkhd", window, operands.weight)
    return torch.einsum("nhd,nkhd->nhk", operands.x, key).to(operands.a.dtype)


def project(kernel: CudaFusedKernel, operands: Operands) -> Tensor:
    problem = measured(kernel, operands.problem)
    out = torch.empty_like(operands.x)
    kernel.project(problem, operands.a, operands.weight, out)
    return out


def plain_project(operands: Operands) -> Tensor:
    value = torch.einsum("nkc,hdc->nkhd", window_rows(operands.problem), operands.weight)
    return torch.einsum("nhk,nkhd->nhd", operands.a.to(value.dtype), value)


def outer(kernel: CudaFusedKernel, operands: Operands) -> Tensor:
    problem = measured(kernel, with_norm(operands.problem, False, False))
    out = torch.empty_like(operands.weight)
    kernel.outer(problem, operands.x, operands.a, out)
    return out


def plain_outer(operands: Operands) -> Tensor:
    window = window_rows(with_norm(operands.problem, False, False))
    rows = torch.einsum("nhk,nhd->hdnk", operands.a.to(window.dtype), operands.x)  # the gradient of keys or values
    return torch.einsum("hdnk,nkc->hdc", rows, window)


PRODUCTS = {"scores": (scores, plain_scores), "project": (project, plain_project), "outer": (outer, plain_outer)}


def measured(kernel: CudaFusedKernel, problem: WindowProblem) -> WindowProblem:
    if problem.norm is None:
        return problem
    return replace(problem, norm=replace(problem.norm, statistics=kernel.statistics(problem)))


def window_rows(problem: WindowProblem) -> Tensor:
    """(N, K, C), normalised, zero where a slot is absent."""
    norm, levels = problem.norm, [level.squeeze(-2) for level in problem.keys]
    if norm is None:
        joined = torch.cat(levels, -1)
    else:
        ones = torch.ones(sum(level.shape[-1] for level in levels), dtype=levels[0].dtype)
        weight = ones if norm.weight is None else norm.weight
        joined = joined_features(levels, weight, norm.bias, norm.eps, "level" if norm.per_level else "all")
    return gather_windows(joined, problem.windows, problem.window_index)[0]


def strided(operands: Operands, seed: int) -> Operands:
    """The same numbers as slices of wider tensors, float32 auxiliaries apart: other strides, other alignments."""
    rng = random.Random(seed)

    def widen(tensor: Tensor) -> Tensor:
        left, right = rng.choice([0, 1, 8]), rng.choice([0, 3, 8])
        return F.pad(tensor, (left, right), value=float("nan"))[..., left : left + tensor.shape[-1]]

    keys = [widen(level) for level in operands.problem.keys]
    problem = replace(operands.problem, keys=keys)
    return replace(operands, problem=problem, x=widen(operands.x), weight=widen(operands.weight))
