"""Random vision tokens: the baseline that every pruning rule should be reported beside."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.compression.pruning.ranking import budget, check_mask, keep_highest
from vr_kernels.ops._arguments import Arguments

__all__ = ["random_rows"]


def random_rows(vision: Tensor, keep_ratio: float = 0.5, *, seed: int = 0) -> Tensor:
    """Which rows stay, if of each sequence's n vision tokens int(n * keep_ratio) do, every set of them equally likely.

    The draw depends on the seed and on n alone: a sample keeps the same tokens in every batch, and so do the beams of
    a search. Samples of equally many vision tokens lose the same places; report several seeds.

    Args:
        vision: (B, N) bool, the vision tokens.
        keep_ratio: which share of a sequence's vision tokens stays.
        seed: of the draw, made on the CPU, so that it is the same on every device.

    Returns:
        (B, N) bool, True where vision is False too.

    Raises:
        ValueError: a mask that is no matrix; a share that is not from 0 to 1.
        TypeError: a mask that is not bool; a share that is no number.

    >>> vision = torch.tensor([[False] + 8 * [True] + [False]])
    >>> kept = random_rows(vision, 0.5, seed=3)
    >>> kept.sum().item(), torch.equal(kept, random_rows(vision, 0.5, seed=3))
    (6, True)
    """
    Arguments("random_rows").share("keep_ratio", keep_ratio)
    check_mask("random_rows", "vision", vision, vision.shape[:2])
    counts = vision.sum(1).tolist()
    scores = torch.zeros(vision.shape)
    for sequence, tokens in enumerate(counts):
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        scores[sequence, vision[sequence].cpu()] = order.to(scores.dtype)
    return keep_highest(scores.to(vision.device), vision, [budget(tokens, keep_ratio) for tokens in counts])
