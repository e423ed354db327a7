"""VisionZip's rule, for any encoder that gives its hidden states and one block's queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops import attention_importance, attention_received
from vr_kernels.ops._arguments import Arguments, signatures
from vr_kernels.ops.token_selection import merge_contextual_tokens, select_dominant_tokens, take_tokens

__all__ = ["ZippedTokens", "check_budget", "dominance", "key_metric", "zip_tokens"]


class ZippedTokens(NamedTuple):
    """What is left of each image, and where it comes from. Patches are numbered in raster order, without CLS row."""

    tokens: Tensor  # (B, K, D): the CLS row where there is one, dominants in raster order, contextual tokens
    dominant: Tensor  # (B, dominant, less one for the CLS row) patches, ascending
    targets: Tensor  # (B, contextual) patches that the contextual tokens were made around, ascending
    assignment: Tensor  # (B, P): the row of tokens that a patch is, or is part of; -1: of none, where contextual is 0
    scores: Tensor  # (B, P) by which the dominants were chosen


def dominance(query: Tensor, key: Tensor, *, has_cls: bool) -> Tensor:
    """How much attention each row gets, the score by which VisionZip keeps it, without an attention map.

    With a CLS row: what the CLS row pays it, summed over heads (Algorithm 1). Without: the mean over all rows of what
    they pay it, averaged over heads.

    Args:
        query, key: (B, N, h, d) of one block, the CLS row first where there is one; float32, bfloat16, float16 or
            float64.
        has_cls: whether row 0 is a CLS row.

    Returns:
        (B, N) float32 (float64 for float64). No gradient.

    Raises:
        ValueError, TypeError: as ``attention_importance`` and ``attention_received`` do.

    >>> import torch
    >>> dominance(torch.randn(2, 577, 16, 64), torch.randn(2, 577, 16, 64), has_cls=True).shape
    torch.Size([2, 577])
    """
    # The operators return half precision for half precision, which would tie most patches of a flat map: the CLS row's
    # attention is computed of float32 copies; a whole map's would take several times as long, so its heads are added up
    # in float32.
    dtype = torch.promote_types(key.dtype, torch.float32)
    with torch.no_grad():
        if has_cls:
            return attention_importance(query[:, :1].to(dtype), key.to(dtype), reduce_heads="sum")
        return attention_received(query, key, reduce_heads=None).mean(1, dtype=dtype)  # (B, h, N) -> (B, N)


def key_metric(key: Tensor) -> Tensor:
    """What VisionZip compares rows by: the mean over heads of a block's keys.

    Args:
        key: (B, N, h, d); float32, bfloat16, float16 or float64.

    Returns:
        (B, N, d) float32 (float64 for float64). No gradient.

    >>> import torch
    >>> key_metric(torch.randn(2, 577, 16, 64)).shape
    torch.Size([2, 577, 64])
    """
    return key.detach().mean(2, dtype=torch.promote_types(key.dtype, torch.float32))


def zip_tokens(
    hidden: Tensor,
    scores: Tensor,
    metric: Tensor,
    dominant: int = 54,
    contextual: int = 10,
    *,
    has_cls: bool = True,
    merge: str = "sum",
) -> ZippedTokens:
    """Keep the tokens of the highest scores, and merge the others with those that are most like them (VisionZip).

    Args:
        hidden: (B, N, D), a block's output; float32, bfloat16, float16 or float64.
        scores: (B, P) of the patches, as ``dominance`` of that block gives them, without the CLS row: P = N - 1 where
            there is one, else N.
        metric: (B, N, d_m), compared by cosine, as ``key_metric`` of that block gives it.
        dominant: how many rows stay as they are, **the CLS row included**: 54 is CLS and 53 patches.
        contextual: how many the others are merged into.
        has_cls: whether row 0 is a CLS row, which always stays.
        merge: "sum", the target plus the mean of what joined it, as the public code; "mean", as the paper.

    Returns:
        ZippedTokens(tokens (B, dominant + contextual, D), dominant, targets, assignment, scores). Tokens are
        differentiable in hidden; which ones are chosen has no gradient.

    Raises:
        ValueError: shapes or devices that do not fit; a budget of fewer rows than the CLS row, or of more than N.
        TypeError: an argument that is no tensor, or of another dtype than allowed.

    >>> import torch
    >>> hidden, query, key = torch.randn(2, 577, 32), torch.randn(2, 577, 4, 8), torch.randn(2, 577, 4, 8)
    >>> scores = dominance(query, key, has_cls=True)[:, 1:]
    >>> zipped = zip_tokens(hidden, scores, key_metric(key), dominant=54, contextual=10)
    >>> zipped.tokens.shape, zipped.dominant.shape, zipped.assignment.shape
    (torch.Size([2, 64, 32]), torch.Size([2, 53]), torch.Size([2, 576]))
    """
    check_budget("zip_tokens", dominant, contextual, has_cls=has_cls)
    arguments = Arguments("zip_tokens")
    given = signatures(hidden, scores)
    arguments.rank("hidden", arguments.tensor("hidden", given[0]), {3: "(B, N, D)"})
    arguments.tensor("scores", given[1])
    first = int(has_cls)  # patch p is row p + first
    batch, rows = hidden.shape[:2]
    if scores.shape != (batch, rows - first):
        raise ValueError(
            f"zip_tokens: scores has shape {tuple(scores.shape)}; it must be {(batch, rows - first)}, one a patch"
        )
    if dominant + contextual > rows:
        raise ValueError(
            f"zip_tokens: dominant is {dominant} and contextual {contextual}; an image has {rows} rows here, "
            "and together they may be no more than that"
        )
    patches = select_dominant_tokens(scores, dominant - first)
    kept = F.pad(patches + first, (first, 0))  # (B, dominant): row 0, the CLS row, before the others
    merged = merge_contextual_tokens(hidden, metric, contextual, kept=kept, merge=merge)
    tokens = torch.cat([take_tokens(hidden, kept), merged.tokens], dim=1)  # (B, K, D)
    assignment = torch.where(merged.assignment < 0, -1, merged.assignment + dominant)  # (B, N)
    assignment = assignment.scatter(1, kept, torch.arange(dominant, device=kept.device).expand_as(kept))
    return ZippedTokens(tokens, patches, merged.targets - first, assignment[:, first:], scores.detach())


def check_budget(operator: str, dominant: int, contextual: int, *, has_cls: bool) -> None:
    """Refuse a budget that no image can meet."""
    for name, count, least in (("dominant", dominant, int(has_cls)), ("contextual", contextual, 0)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{operator}: {name} is {count!r}; it must be an int")
        if count < least:
            reason = ", since it counts the CLS row" if least else ""
            raise ValueError(f"{operator}: {name} is {count}; it must be at least {least}{reason}")
    if dominant + contextual == 0:
        raise ValueError(f"{operator}: dominant and contextual are both 0; at least one token must be left")
