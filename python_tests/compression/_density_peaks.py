"""Clustering by density peaks said plainly, token by token."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clusters(tokens: Tensor, count: int) -> Tensor:
    """(n, D) in float64 -> the means of the clusters (count, D), the highest peak first."""
    n = len(tokens)
    distance = [[float((a - b).norm()) / math.sqrt(tokens.shape[1]) for b in tokens] for a in tokens]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in distance]
    farthest = max(max(row) for row in distance)
    height = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        height.append(min(denser, default=farthest))
    centres = sorted(range(n), key=lambda i: (-density[i] * height[i], i))[:count]
    of = [
        centres.index(i) if i in centres else min(range(count), key=lambda c: distance[centres[c]][i]) for i in range(n)
    ]
    return torch.stack([tokens[[i for i in range(n) if of[i] == c]].mean(0) for c in range(count)])
