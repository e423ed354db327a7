"""``select_dominant_tokens`` and ``merge_contextual_tokens``: which tokens stay, and into what the others are merged.

Stock PyTorch is all that runs here: beside the encoder whose tokens they are, a kernel of our own would save nothing
that could be measured (see ``vr-kernels bench visionzip``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature, is_readable, refuse_outside, remember, signatures
from vr_kernels.ops.token_selection import reference
from vr_kernels.ops.token_selection.reference import remaining_tokens, take_tokens

__all__ = ["MergedTokens", "merge_contextual_tokens", "remaining_tokens", "select_dominant_tokens", "take_tokens"]

MERGES = ("sum", "mean")


class MergedTokens(NamedTuple):
    """What ``merge_contextual_tokens`` returns: C tokens of each sequence, and what they are made of."""

    tokens: Tensor  # (B, C, D)
    targets: Tensor  # (B, C) rows of hidden, ascending
    assignment: Tensor  # (B, N): which of the C tokens a row is part of; -1: of none


def select_dominant_tokens(scores: Tensor, count: int) -> Tensor:
    """The ``count`` tokens of the highest scores, in raster order (VisionZip, Algorithm 1).

    Of equal scores the lower index wins, in every dtype and on every device. A NaN counts as -inf: it is chosen last.

    Args:
        scores: (B, N), one number a token, such as ``attention_importance`` of the CLS row or ``attention_received``;
            float32, bfloat16, float16 or float64.
        count: how many of the N to choose, from 0 to N.

    Returns:
        (B, count) int64 indices, ascending in each row. Not differentiable.

    Raises:
        ValueError: scores that are no matrix; a count beyond what there is.
        TypeError: scores that are no floating tensor; a count that is no int.

    >>> import torch
    >>> select_dominant_tokens(torch.tensor([[0.1, 0.4, 0.2, 0.4, 0.4]]), 2)
    tensor([[1, 3]])
    """
    _check_selection(signatures(scores), count)
    return reference.select_dominant_tokens(scores.detach(), count)


def merge_contextual_tokens(
    hidden: Tensor, metric: Tensor, count: int, *, kept: Tensor | None = None, merge: str = "sum"
) -> MergedTokens:
    """Merge the tokens that were not selected into ``count`` contextual ones (VisionZip, Algorithm 2).

    Of the R rows that are left, in raster order, every ``max(1, R // C)``-th is a target, C in all. Each other row
    joins the target whose metric is most similar to its own: the cosine, the first of equal ones; a metric of zero is
    equally far from all. Similarities are float64, rounded to multiples of 2^-24, so that equal ones tie however a
    product is summed; sums of tokens are float32 (float64 for float64), whatever the dtype.

    Args:
        hidden: (B, N, D); float32, bfloat16, float16 or float64. Any strides; contiguous rows are read where they lie,
            and only half precision is copied, to float32.
        metric: (B, N, d_m), what the similarity is taken of, such as the mean over heads of the block's keys; any
            floating dtype. No gradient reaches it.
        count: C, the number of contextual tokens, from 0 to R.
        kept: (B, K) int64, rows of hidden that are *not* merged, each once, such as the CLS row and
            ``select_dominant_tokens``: then R = N - K. Values are checked on the CPU (not inside compiled graphs).
            None: all rows are merged.
        merge: "sum", the target plus the mean of the rows that joined it, as VisionZip's public code; "mean", the mean
            of the target and those rows, as its paper. A target that no row joined stays as it is.

    Returns:
        MergedTokens(tokens (B, C, D) in hidden's dtype, targets (B, C), assignment (B, N)); the last two are int64. A
        target is part of its own token; rows that are kept, and all rows where C is 0, have the assignment -1. Tokens
        are differentiable in hidden.

    Raises:
        ValueError: shapes or devices that do not fit; a count larger than the number of rows left; rows in kept that
            do not exist or repeat; an unknown merge.
        TypeError: an argument that is no tensor, or of another dtype than allowed.

    >>> import torch
    >>> hidden = torch.tensor([[[0.0], [10.0], [20.0], [30.0], [40.0]]])
    >>> metric = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0], [0.0, 0.0]]])
    >>> merged = merge_contextual_tokens(hidden, metric, 2, kept=torch.tensor([[4]]))  # targets 0 and 2; 1, 3 join 2
    >>> merged.tokens.flatten().tolist(), merged.targets.tolist(), merged.assignment.tolist()
    ([0.0, 40.0], [[0, 2]], [[0, 1, 1, 1, -1]])
    """
    _check_merge(signatures(hidden, metric, kept), count, merge)
    if kept is None:
        kept = torch.empty(hidden.shape[0], 0, dtype=torch.int64, device=hidden.device)
    else:
        _check_kept_values(kept, hidden.shape[1])
    return MergedTokens(*reference.merge_contextual_tokens(hidden, metric.detach(), count, kept=kept, merge=merge))


@remember
def _check_selection(given: tuple[Any, ...], count: Any) -> None:
    arguments = Arguments("select_dominant_tokens", "scores")
    scores = arguments.tensor("scores", given[0])
    arguments.floating("scores", scores)
    arguments.rank("scores", scores, {2: "(B, N)"})
    _check_count(arguments, count, scores.shape[1], "the tokens there are")


@remember
def _check_merge(given: tuple[Any, ...], count: Any, merge: Any) -> None:
    arguments = Arguments("merge_contextual_tokens", "hidden")
    hidden = arguments.tensor("hidden", given[0])
    arguments.floating("hidden", hidden)
    arguments.rank("hidden", hidden, {3: "(B, N, D)"})
    metric = arguments.tensor("metric", given[1])
    arguments.floating("metric", metric)
    arguments.same_device("metric", metric, hidden)
    _check_rows(arguments, "metric", metric, hidden, "(B, N, d_m)", 3)
    if metric.shape[1] != hidden.shape[1]:
        raise arguments.error(f"metric has {metric.shape[1]} rows, hidden has {hidden.shape[1]}; they must be equal")
    left = hidden.shape[1]
    if given[2] is not None:
        kept = arguments.tensor("kept", given[2])
        arguments.same_device("kept", kept, hidden)
        if kept.dtype != torch.int64:
            raise TypeError(f"{arguments.operator}: kept is {kept.dtype}; it must be torch.int64")
        _check_rows(arguments, "kept", kept, hidden, "(B, K)", 2)
        if kept.shape[1] > left:
            raise arguments.error(f"kept has {kept.shape[1]} rows, hidden has {left}; it can keep no more than those")
        left -= kept.shape[1]
    _check_count(arguments, count, left, "the rows that are left to be merged")
    arguments.choice("merge", merge, MERGES)


def _check_rows(arguments: Arguments, name: str, got: Signature, hidden: Signature, form: str, rank: int) -> None:
    arguments.rank(name, got, {rank: form})
    if got.shape[0] != hidden.shape[0]:
        raise arguments.error(f"{name} has batch {got.shape[0]}, hidden has {hidden.shape[0]}; they must be equal")


def _check_count(arguments: Arguments, count: Any, available: int, what: str) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, torch.SymInt)):
        raise TypeError(f"{arguments.operator}: count is {count!r}; it must be an int")
    if not 0 <= count <= available:
        raise arguments.error(f"count is {count}; it must be from 0 to {available}, {what}")


def _check_kept_values(kept: Tensor, rows: int) -> None:
    """Refuse rows that do not exist or repeat. Reads data: plain CPU tensors, untraced code only."""
    if not is_readable(kept):
        return
    refuse_outside("merge_contextual_tokens", "kept", kept, 0, rows, f"a row of hidden in [0, {rows})")
    ordered = kept.sort(-1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
    if len(repeated) > 0:
        sequence, slot = repeated[0].tolist()
        raise ValueError(
            f"merge_contextual_tokens: kept[{sequence}] names row {int(ordered[sequence, slot])} twice; "
            "each row may be kept once"
        )
