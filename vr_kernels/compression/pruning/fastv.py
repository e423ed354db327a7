"""FastV's rule (arXiv 2403.06764): a layer's last row says which vision tokens the layers above it see."""

from __future__ import annotations

from torch import Tensor

from vr_kernels.compression.pruning.ranking import budget, check_mask, keep_attended
from vr_kernels.ops._arguments import Arguments

__all__ = ["fastv"]


def fastv(
    query: Tensor, key: Tensor, vision: Tensor, keep_ratio: float = 0.5, *, valid: Tensor | None = None
) -> Tensor:
    """Which rows go on from the layer whose queries and keys these are to the next one.

    Args:
        query: (B, 1, h, d), the last row's, after RoPE; float32, bfloat16, float16 or float64.
        key: (B, N, h_kv, d), after RoPE; h_kv divides h.
        vision: (B, N) bool, the vision tokens.
        keep_ratio: which share of a sequence's n vision tokens stays: int(n * keep_ratio) of them.
        valid: (B, N) bool, False at padding; None: no padding.

    Returns:
        (B, N) bool: all rows that are no vision tokens, and the vision tokens that the last row attends to most, in
        the mean over heads. Of equal ones the first stay.

    Raises:
        ValueError: shapes or devices that do not fit; a share that is not from 0 to 1. TypeError: a mask that is not
            bool; a share that is no number.

    >>> import torch
    >>> vision = torch.tensor([[False] + 8 * [True] + [False]])
    >>> fastv(torch.randn(1, 1, 4, 8), torch.randn(1, 10, 2, 8), vision, 0.25).sum().item()
    4
    """
    Arguments("fastv").share("keep_ratio", keep_ratio)
    check_mask("fastv", "vision", vision, key.shape[:2])
    counts = [budget(tokens, keep_ratio) for tokens in vision.sum(1).tolist()]
    return keep_attended(query, key, vision, counts, valid)
