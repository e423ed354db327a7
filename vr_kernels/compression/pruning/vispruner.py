"""VisPruner's rule (arXiv 2412.01818): the patches that the encoder attends to, and others that are unlike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, signatures
from vr_kernels.ops.token_selection import remaining_tokens, select_dominant_tokens, take_tokens

__all__ = ["diverse_tokens", "vispruner"]


def vispruner(
    scores: Tensor, features: Tensor, count: int = 64, important_ratio: float = 0.5, *, step: int = 8
) -> Tensor:
    """The patches of each image that stay: int(count * important_ratio) by score, the others by being unlike the rest.

    Args:
        scores: (B, P), the CLS row's attention, or what stands for it; float32, bfloat16, float16 or float64.
        features: (B, P, D) of the patches, compared by cosine; as scores, and of any scale.
        count: how many stay, from 0 to P.
        important_ratio: which share of them is chosen by score.
        step: how many of the others are dropped at a time (``diverse_tokens``).

    Returns:
        (B, count) int64, ascending: raster order. Not differentiable.

    Raises:
        ValueError: shapes that do not fit; a count not from 0 to P; a share not from 0 to 1; a step below 1.
        TypeError: an argument of another type.

    >>> vispruner(torch.rand(2, 576), torch.randn(2, 576, 16), 64).shape
    torch.Size([2, 64])
    """
    arguments = Arguments("vispruner")
    given = signatures(scores, features)
    of_scores, of_features = arguments.tensor("scores", given[0]), arguments.tensor("features", given[1])
    arguments.rank("scores", of_scores, {2: "(B, P)"})
    patches = of_scores.shape[1]
    if of_features.shape[:-1] != of_scores.shape:
        raise arguments.error(
            f"features has shape {of_features.shape}; it must be (B, P, D), scores has {of_scores.shape}"
        )
    arguments.integer("count", count, 0)
    if count > patches:
        raise arguments.error(f"count is {count}; it must be from 0 to {patches}, the patches of an image")
    arguments.share("important_ratio", important_ratio)
    arguments.integer("step", step, 1)
    important = select_dominant_tokens(scores, int(count * important_ratio))
    rest = remaining_tokens(important, patches)  # (B, R)
    by_score = take_tokens(scores.detach(), rest).sort(dim=1, descending=True, stable=True).indices
    diverse = diverse_tokens(features, rest.gather(1, by_score), count - important.shape[1], step=step)
    return torch.cat([important, diverse], 1).sort(1).values


def diverse_tokens(features: Tensor, candidates: Tensor, count: int, *, step: int = 8) -> Tensor:
    """Drop, ``step`` at a time, the candidates that are most like another, until ``count`` are left.

    A round pairs off the candidates of even places with those of odd ones: an even one's likeness is its largest cosine
    to an odd one, and of the evens the ``step`` most alike are dropped. What stays of them, the most alike first, and
    then the odd ones are the next round's candidates.

    Args:
        features: (B, P, D); float32, bfloat16, float16 or float64.
        candidates: (B, R) int64, rows of features, each once: the order decides which are even.
        count: how many of them stay.
        step: the most that one round drops.

    Returns:
        (B, count) int64, in no order.

    Raises:
        ValueError: a count that is not from 0 to R; a step below 1. TypeError: one of them that is no int.

    >>> features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]])
    >>> diverse_tokens(features, torch.tensor([[0, 2, 1]]), 2, step=1)
    tensor([[1, 2]])
    """
    arguments = Arguments("diverse_tokens")
    arguments.integer("count", count, 0)
    arguments.integer("step", step, 1)
    if count > candidates.shape[1]:
        raise arguments.error(f"count is {count}; it must be from 0 to {candidates.shape[1]}, the candidates there are")
    unit = F.normalize(features.detach().to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    likeness = unit @ unit.mT  # (B, P, P)
    image = torch.arange(len(features), device=features.device)[:, None, None]
    while candidates.shape[1] > count:
        even, odd = candidates[:, ::2], candidates[:, 1::2]
        fewer = min(step, candidates.shape[1] - count, even.shape[1])
        if odd.shape[1] == 0:  # a single candidate, of which none is to stay
            return candidates[:, fewer:]
        nearest = likeness[image, even[..., None], odd[:, None]].amax(-1)  # (B, evens)
        order = nearest.sort(dim=1, descending=True, stable=True).indices
        candidates = torch.cat([even.gather(1, order[:, fewer:]), odd], 1)
    return candidates
