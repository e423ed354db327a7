"""PyramidDrop's rule (arXiv 2410.17247): each stage leaves fewer, as the last instruction token ranks them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vr_kernels.compression.pruning.ranking import budget, check_mask, keep_attended
from vr_kernels.ops._arguments import Arguments

__all__ = ["pyramiddrop"]


def pyramiddrop(
    query: Tensor,
    key: Tensor,
    vision: Tensor,
    keep_ratio: float,
    originals: Sequence[int],
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """Which rows enter the layer whose queries and keys these are; called anew for each stage.

    Args:
        query: (B, 1, h, d), the last instruction token's, after RoPE; float32, bfloat16, float16 or float64.
        key: (B, N, h_kv, d) of the rows that the stages before have left, after RoPE; h_kv divides h.
        vision: (B, N) bool, the vision tokens among them.
        keep_ratio: which share of the *original* number n of vision tokens stays: int(n * keep_ratio) of them.
        originals: that number, of each sequence.
        valid: (B, N) bool, False at padding; None: no padding.

    Returns:
        (B, N) bool: all rows that are no vision tokens, and the vision tokens that the row attends to most, in the mean
        over heads of its softmax over the whole row. Of equal ones the first stay.

    Raises:
        ValueError: shapes, devices or numbers that do not fit; a share that is not from 0 to 1.
        TypeError: a mask that is not bool; a share that is no number.

    >>> import torch
    >>> vision = torch.tensor([[False] + 4 * [True] + [False]])  # 4 of 8 are left
    >>> pyramiddrop(torch.randn(1, 1, 4, 8), torch.randn(1, 6, 2, 8), vision, 0.25, [8]).sum().item()
    4
    """
    Arguments("pyramiddrop").share("keep_ratio", keep_ratio)
    check_mask("pyramiddrop", "vision", vision, key.shape[:2])
    if len(originals) != len(vision):
        raise ValueError(
            f"pyramiddrop: originals has {len(originals)} numbers; it must have {len(vision)}, one a sequence"
        )
    return keep_attended(query, key, vision, [budget(tokens, keep_ratio) for tokens in originals], valid)
