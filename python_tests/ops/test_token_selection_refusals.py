"""What ``select_dominant_tokens`` and ``merge_contextual_tokens`` refuse, each in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vr_kernels import merge_contextual_tokens, select_dominant_tokens

HIDDEN, METRIC = torch.zeros(2, 9, 4), torch.zeros(2, 9, 3)

BAD_SELECTIONS: list[tuple[Any, Any, type[Exception], str]] = [
    ([1.0], 1, TypeError, "scores is a list; it must be a torch.Tensor"),
    (torch.zeros(2, 9, dtype=torch.int64), 1, TypeError, "scores is torch.int64; it must be float32"),
    (torch.zeros(9), 1, ValueError, r"scores has shape .*; it must be \(B, N\)"),
    (torch.zeros(2, 9), 10, ValueError, "count is 10; it must be from 0 to 9, the tokens there are"),
    (torch.zeros(2, 9), -1, ValueError, "count is -1"),
    (torch.zeros(2, 9), True, TypeError, "count is True; it must be an int"),
    (torch.zeros(2, 9), 2.0, TypeError, r"count is 2\.0"),
]


@pytest.mark.parametrize(("scores", "count", "error", "message"), BAD_SELECTIONS, ids=lambda x: str(x)[:40])
def test_bad_selections_are_refused(scores: Any, count: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"select_dominant_tokens: {message}"):
        select_dominant_tokens(scores, count)


BAD_MERGES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": None}, TypeError, "hidden is None"),
    ({"hidden": HIDDEN[0]}, ValueError, r"hidden has shape .*; it must be \(B, N, D\)"),
    ({"metric": METRIC.long()}, TypeError, "metric is torch.int64"),
    ({"metric": METRIC[:1]}, ValueError, "metric has batch 1, hidden has 2"),
    ({"metric": METRIC[:, 1:]}, ValueError, "metric has 8 rows, hidden has 9"),
    ({"metric": METRIC.to("meta")}, ValueError, "metric is on meta, hidden is on cpu"),
    ({"count": 8}, ValueError, "count is 8; it must be from 0 to 7, the rows that are left to be merged"),
    ({"count": None}, TypeError, "count is None; it must be an int"),
    ({"merge": "max"}, ValueError, 'merge is \'max\'; it must be "sum" or "mean"'),
    ({"kept": torch.zeros(2, 2)}, TypeError, "kept is torch.float32; it must be torch.int64"),
    ({"kept": torch.zeros(2, 10, dtype=torch.int64)}, ValueError, "kept has 10 rows, hidden has 9"),
    (
        {"kept": torch.tensor([[0, 1], [3, 9]])},
        ValueError,
        r"kept\[1, 1\] is 9; it must be a row of hidden in \[0, 9\)",
    ),
    ({"kept": torch.tensor([[0, -1], [3, 8]])}, ValueError, r"kept\[0, 1\] is -1"),
    ({"kept": torch.tensor([[0, 1], [3, 3]])}, ValueError, r"kept\[1\] names row 3 twice"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_MERGES, ids=lambda x: str(x)[:40])
def test_bad_merges_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"hidden": HIDDEN, "metric": METRIC, "count": 2, "kept": torch.tensor([[0, 1], [3, 4]])} | change
    with pytest.raises(error, match=f"merge_contextual_tokens: {message}"):
        merge_contextual_tokens(**call)
