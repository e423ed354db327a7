"""VisionZip stated again, image by image and patch by patch, from eager attention maps: what the library must give."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Zipped(NamedTuple):
    tokens: Tensor  # (K, D)
    dominant: list[int]  # patches
    targets: list[int]
    assignment: list[int]  # row of tokens of each patch


def most_attended(scores: list[float], count: int) -> list[int]:
    """Higher score first, of equal ones the lower index; in raster order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def cosine(a: Tensor, b: Tensor) -> float:
    """In float64, rounded to the grid on which equal ones meet."""
    norm = float(a.norm()) * float(b.norm())
    return round(float(torch.dot(a, b)) / norm * 2**24) if norm > 0 else 0


def merge(
    hidden: Tensor, metric: Tensor, rest: list[int], count: int, kind: str
) -> tuple[list[Tensor], list[int], dict[int, int]]:
    """Contextual tokens, their targets, and the cluster of every row of ``rest``; hidden (N, D), metric (N, d)."""
    if count == 0:
        return [], [], {}
    metric = metric.double()
    step = max(1, len(rest) // count)
    targets = rest[::step][:count]
    cluster = {}
    for row in rest:
        similarity = [cosine(metric[row], metric[target]) for target in targets]
        cluster[row] = targets.index(row) if row in targets else similarity.index(max(similarity))
    tokens = []
    for number, target in enumerate(targets):
        joined = [hidden[row] for row in rest if cluster[row] == number and row != target]
        if kind == "mean":
            tokens.append(torch.stack([hidden[target], *joined]).mean(0))
        else:
            tokens.append(hidden[target] + torch.stack(joined).mean(0) if joined else hidden[target])
    return tokens, targets, cluster


def visionzip(
    hidden: Tensor, scores: Tensor, metric: Tensor, dominant: int, contextual: int, *, has_cls: bool, kind: str = "sum"
) -> Zipped:
    """One image: hidden (N, D), scores (P,), metric (N, d)."""
    first = int(has_cls)
    patches = most_attended(scores.tolist(), dominant - first)
    kept = [*range(first), *(patch + first for patch in patches)]
    rest = [row for row in range(len(hidden)) if row not in kept]
    contexts, targets, cluster = merge(hidden, metric, rest, contextual, kind)
    row_of = {row: place for place, row in enumerate(kept)} | {row: dominant + c for row, c in cluster.items()}
    return Zipped(
        torch.stack([*(hidden[row] for row in kept), *contexts]),
        patches,
        [target - first for target in targets],
        [row_of.get(patch + first, -1) for patch in range(len(scores))],
    )


def of_tower(
    eager: Any, images: Tensor, dominant: int, contextual: int, *, level: int = -2, kind: str = "sum", **options: Any
) -> list[Zipped]:
    """Every image through a tower that was loaded with eager attention, from its own maps and hidden states."""
    outputs = eager(images, output_hidden_states=True, output_attentions=True, **options)
    has_cls = hasattr(eager.embeddings, "class_embedding")
    number = level if level >= 0 else level + len(outputs.hidden_states)  # block, 1-based
    block = eager.encoder.layers[number - 1]
    maps = outputs.attentions[number - 1].double()  # (B, h, N, N)
    keys = block.self_attn.k_proj(block.layer_norm1(outputs.hidden_states[number - 1]))  # (B, N, h*d)
    metric = keys.double().unflatten(-1, (maps.shape[1], -1)).mean(2)
    scores = maps[:, :, 0, 1:].sum(1) if has_cls else maps.mean((1, 2))  # (B, P)
    images_of = zip(outputs.hidden_states[number], scores, metric, strict=True)
    return [visionzip(*image, dominant, contextual, has_cls=has_cls, kind=kind) for image in images_of]
