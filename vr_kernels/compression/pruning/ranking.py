"""What the pruning rules share: the attention that single rows pay, and the highest scores of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops import attention_importance
from vr_kernels.ops._arguments import Arguments

__all__ = ["attention_of_last_row", "attention_of_rows", "budget", "check_mask", "keep_attended", "keep_highest"]


def budget(tokens: int, ratio: float) -> int:
    """How many of an image's tokens a share of them is: rounded down, as the public codes do.

    Raises:
        ValueError: a ratio that is not from 0 to 1. TypeError: one that is no number.

    >>> budget(576, 0.5), budget(7, 0.5), budget(7, 1.0)
    (288, 3, 7)
    """
    Arguments("budget").share("ratio", ratio)
    return int(tokens * ratio)


def check_mask(operator: str, name: str, mask: Tensor, shape: Sequence[int]) -> None:
    """Refuse a mask of rows that is not bool, or not of this shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{operator}: {name} is {mask.dtype}; it must be torch.bool")
    if mask.dim() != 2 or tuple(mask.shape) != tuple(shape):
        expected = tuple(shape) if len(shape) == 2 else "(B, N)"
        raise ValueError(f"{operator}: {name} has shape {tuple(mask.shape)}; it must be {expected}")


def attention_of_last_row(query: Tensor, key: Tensor, valid: Tensor | None = None) -> Tensor:
    """The attention that each sequence's last row pays, averaged over heads, without an attention map.

    Args:
        query: (B, 1, h, d), that row's, after RoPE.
        key: (B, N, h_kv, d), after RoPE; h_kv divides h.
        valid: (B, N) bool, False at padding; None: no padding. All valid rows are at or before the last one.

    Returns:
        (B, N) float32 (float64 for float64), whose rows sum to 1. No gradient.

    >>> paid = attention_of_last_row(torch.randn(2, 1, 4, 8), torch.randn(2, 9, 2, 8))
    >>> paid.shape, bool(torch.allclose(paid.sum(1), torch.ones(2)))
    (torch.Size([2, 9]), True)
    """
    # The operator returns half precision for half precision, which would tie most tokens of a flat row.
    dtype = torch.promote_types(key.dtype, torch.float32)
    with torch.no_grad():
        return attention_importance(query.to(dtype), key.to(dtype), key_mask=valid)


def attention_of_rows(query: Tensor, key: Tensor, rows: Tensor, valid: Tensor | None = None) -> Tensor:
    """The attention that some rows of one causal sequence pay, averaged over heads and over those rows.

    Each row's softmax is over the tokens up to itself, so every row is a call of its own to the operator, in one batch
    that reads the same keys: no copy of them is made on the CPU.

    Args:
        query: (R, h, d), those rows', after RoPE.
        key: (N, h_kv, d), after RoPE; h_kv divides h.
        rows: (R,) int64, where in the sequence they stand.
        valid: (N,) bool, False at padding; None: no padding.

    Returns:
        (N,) float32 (float64 for float64), of which the sum is 1. No gradient.

    >>> paid = attention_of_rows(torch.randn(2, 4, 8), torch.randn(9, 2, 8), torch.tensor([5, 7]))
    >>> round(paid.sum().item(), 4), paid[8].item()
    (1.0, 0.0)
    """
    dtype = torch.promote_types(key.dtype, torch.float32)
    seen = torch.arange(key.shape[0], device=key.device) <= rows[:, None]  # (R, N)
    if valid is not None:
        seen = seen & valid
    keys = key.to(dtype).expand(rows.shape[0], *key.shape)  # (R, N, h_kv, d)
    with torch.no_grad():
        return attention_importance(query[:, None].to(dtype), keys, key_mask=seen).mean(0)


def keep_highest(scores: Tensor, candidates: Tensor, counts: Sequence[int]) -> Tensor:
    """Which rows stay where each sequence drops a number of its own: all but the worst of the candidates.

    Of equal scores the lower index wins, as in ``select_dominant_tokens``; a NaN counts as -inf.

    Args:
        scores: (B, N), any floating dtype.
        candidates: (B, N) bool, the rows that may be dropped.
        counts: of each sequence how many candidates stay; more than there are keep all.

    Returns:
        (B, N) bool.

    Raises:
        ValueError: candidates of another shape; more or fewer counts than sequences. TypeError: candidates that are not
            bool.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5, 0.5, 0.0]])
    >>> keep_highest(scores, torch.tensor([[False, True, True, True, True]]), [1])
    tensor([[ True, False,  True, False, False]])
    """
    check_mask("keep_highest", "candidates", candidates, scores.shape)
    if len(counts) != len(scores):
        raise ValueError(f"keep_highest: counts has {len(counts)} numbers; it must have {len(scores)}, one a sequence")
    ranking = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ordered = candidates.gather(1, ranking)  # candidates first to last, others between them
    place = ordered.cumsum(1)  # of a candidate: 1 for the best
    best = ordered & (place <= torch.tensor(counts, device=scores.device)[:, None])
    return ~candidates | torch.zeros_like(candidates).scatter(1, ranking, best)


def keep_attended(
    query: Tensor, key: Tensor, vision: Tensor, counts: Sequence[int], valid: Tensor | None = None
) -> Tensor:
    """Which rows stay of those the last row attends to: all text, and ``counts`` vision tokens of each sequence.

    Args:
        query, key, valid: see ``attention_of_last_row``.
        vision: (B, N) bool.
        counts: see ``keep_highest``.

    Returns:
        (B, N) bool.

    >>> vision = torch.tensor([[False, True, True, True, False]])
    >>> keep_attended(torch.randn(1, 1, 2, 4), torch.randn(1, 5, 2, 4), vision, [2]).sum().item()
    4
    """
    return keep_highest(attention_of_last_row(query, key, valid), vision, counts)
