"""VisPruner's rule said plainly: one image, one patch at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def vispruner(scores: list[float], features: Tensor, count: int, important_ratio: float, step: int = 8) -> list[int]:
    """scores of P patches, features (P, D) in float64 -> the patches that stay, ascending."""
    by_score = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    important = int(count * important_ratio)
    kept, rest = by_score[:important], by_score[important:]
    return sorted(kept + diverse(features, rest, count - important, step))


def diverse(features: Tensor, rest: list[int], count: int, step: int) -> list[int]:
    while len(rest) > count:
        even, odd = rest[::2], rest[1::2]
        fewer = min(step, len(rest) - count, len(even))
        if not odd:
            return rest[fewer:]
        likeness = {i: max(cosine(features[i], features[j]) for j in odd) for i in even}
        rest = sorted(even, key=lambda i: -likeness[i])[fewer:] + odd
    return rest


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))
