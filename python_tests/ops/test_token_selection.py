"""``select_dominant_tokens`` and ``merge_contextual_tokens`` against their rule, stated row by row."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_tests._cases import Call
from python_tests._errors import assert_obeys_the_error_rule
from python_tests.compression import _visionzip
from vr_kernels import merge_contextual_tokens, select_dominant_tokens
from vr_kernels.ops.token_selection import remaining_tokens, take_tokens

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
merges = pytest.mark.parametrize("merge", ["sum", "mean"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Selection


@dtypes
@given(levels=st.integers(1, 5), length=st.integers(1, 70), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_lower_of_equal_scores_wins_in_every_dtype(
    dtype: torch.dtype, levels: int, length: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(0, levels), min_size=length, max_size=length))
    count = data.draw(st.integers(0, length))
    scores = torch.tensor([values, values[::-1]], dtype=dtype) / 7
    chosen = select_dominant_tokens(scores, count)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [_visionzip.most_attended(row, count) for row in (values, values[::-1])]


def test_many_ties_are_broken_the_same_way_whatever_the_length() -> None:
    for length in (17, 576, 5000, 20_011):
        chosen = select_dominant_tokens(torch.ones(2, length), 16)
        assert chosen.tolist() == [list(range(16))] * 2


def test_a_nan_is_chosen_after_every_number_and_with_minus_infinity() -> None:
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[nan, -5.0, -inf, inf, -nan]])
    assert [select_dominant_tokens(scores, count).tolist()[0] for count in (1, 2, 3, 4)] == [
        [3], [1, 3], [0, 1, 3], [0, 1, 2, 3]
    ]  # fmt: skip


def test_zeros_of_either_sign_are_equal() -> None:
    assert select_dominant_tokens(torch.tensor([[-0.0, 0.0, -0.0]]), 2).tolist() == [[0, 1]]


def test_selection_takes_any_strides_and_no_gradient() -> None:
    scores = normal(9, 3, 2)[..., 0].mT.requires_grad_()  # (3, 9)
    chosen = select_dominant_tokens(scores, 4)
    assert torch.equal(chosen, select_dominant_tokens(scores.detach().clone(memory_format=torch.contiguous_format), 4))
    assert not chosen.requires_grad


# Merging


def drawn(batch: int, rows: int, width: int, kept: int, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """hidden, metric and kept rows, of which every sequence has others."""
    scores = normal(batch, rows, seed=seed + 2)
    hidden, metric = normal(batch, rows, width, seed=seed), normal(batch, rows, 3, seed=seed + 1)
    return hidden.to(dtype), metric.to(dtype), select_dominant_tokens(scores, kept)


def check(hidden: Tensor, metric: Tensor, count: int, kept: Tensor, merge: str) -> None:
    """Bit for bit what is chosen, and the tokens but for the order of summation."""
    merged = merge_contextual_tokens(hidden, metric, count, kept=kept, merge=merge)
    for b in range(len(hidden)):
        rest = [row for row in range(hidden.shape[1]) if row not in kept[b].tolist()]
        tokens, targets, cluster = _visionzip.merge(hidden[b].double(), metric[b], rest, count, merge)
        assert merged.targets[b].tolist() == targets
        assert merged.assignment[b].tolist() == [cluster.get(row, -1) for row in range(hidden.shape[1])]
        expected = torch.stack(tokens) if tokens else hidden.new_empty(0, hidden.shape[2]).double()
        torch.testing.assert_close(merged.tokens[b].double(), expected, atol=1e-6, rtol=1e-5)


@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    merge=st.sampled_from(["sum", "mean"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_merging_follows_the_rule(batch: int, rows: int, merge: str, seed: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, rows))
    count = data.draw(st.integers(0, rows - kept))
    hidden, metric, index = drawn(batch, rows, 5, kept, seed)
    check(hidden, metric, count, index, merge)


@merges
def test_the_papers_numbers(merge: str) -> None:
    hidden, metric, kept = drawn(2, 577, 64, 54, 0)
    check(hidden, metric, 10, kept, merge)


@merges
@pytest.mark.parametrize("coarse", [1, 2])
def test_of_equally_similar_targets_the_first_wins(merge: str, coarse: int) -> None:
    """Metrics of a few values: most similarities tie, and no two products of a row are summed alike."""
    hidden, _, kept = drawn(3, 61, 4, 7, 1)
    metric = (normal(3, 61, 67, seed=5)[:, :coarse]).repeat(1, 61, 1)[:, :61] * torch.linspace(1, 9, 61)[:, None]
    check(hidden, metric, 12, kept, merge)


@merges
def test_a_metric_of_zero_joins_the_first_target(merge: str) -> None:
    hidden, metric, kept = drawn(2, 12, 4, 2, 3)
    merged = merge_contextual_tokens(hidden, torch.zeros_like(metric), 3, kept=kept, merge=merge)
    check(hidden, torch.zeros_like(metric), 3, kept, merge)
    assert (merged.assignment == 0).sum(1).tolist() == [8, 8]


@merges
@dtypes
def test_a_target_that_nobody_joins_stays_as_it_is(merge: str, dtype: torch.dtype) -> None:
    hidden = normal(1, 6, 3).to(dtype)
    metric = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 0], [-1, 0], [1, 0]]], dtype=dtype)
    merged = merge_contextual_tokens(hidden, metric, 3, merge=merge)  # targets 0, 2, 4; the others are as 0
    assert merged.assignment.tolist() == [[0, 0, 1, 0, 2, 0]]
    assert torch.equal(merged.tokens[:, 1:], hidden[:, [2, 4]])


@merges
def test_all_that_is_left_may_be_targets(merge: str) -> None:
    hidden, metric, kept = drawn(2, 9, 4, 3, 0)
    merged = merge_contextual_tokens(hidden, metric, 6, kept=kept, merge=merge)
    assert torch.equal(merged.tokens, take_tokens(hidden, remaining_tokens(kept, 9)))


@merges
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_sums_obey_the_error_rule(merge: str, dtype: torch.dtype) -> None:
    kept = select_dominant_tokens(normal(2, 193, seed=9), 20)

    def ours(hidden: Tensor, metric: Tensor) -> Tensor:
        return merge_contextual_tokens(hidden, metric, 7, kept=kept, merge=merge).tokens

    def public_code(hidden: Tensor, metric: Tensor) -> Tensor:
        """A product with the one-hot assignment, divided by how many there are."""
        assignment = merge_contextual_tokens(hidden, metric, 7, kept=kept)
        member = F.one_hot(assignment.assignment + 1, 8)[..., 1:].to(hidden.dtype)  # (B, N, C)
        target = take_tokens(hidden, assignment.targets)
        if merge == "sum":
            member = member.scatter(1, assignment.targets[..., None].expand(-1, -1, 7), 0.0)
        mean = member.mT @ hidden / member.sum(1)[..., None].clamp(min=1)
        return target + mean if merge == "sum" else mean

    def draw(seed: int) -> Call:
        hidden, metric = 100 * normal(2, 193, 24, seed=seed), normal(2, 193, 6, seed=seed + 50)
        return {"hidden": hidden.to(dtype), "metric": metric.to(dtype)}

    assert_obeys_the_error_rule(ours, public_code, public_code, draw, wanted=["hidden"])


def test_a_sum_beyond_float16_is_no_infinity() -> None:
    hidden = torch.full((1, 600, 2), 300.0, dtype=torch.float16)
    merged = merge_contextual_tokens(hidden, torch.ones(1, 600, 1), 1, merge="mean")
    assert merged.tokens.unique().tolist() == [300.0]


@merges
def test_rows_of_no_cluster_are_not_read(merge: str) -> None:
    hidden, metric, kept = drawn(2, 31, 4, 9, 0)
    poisoned = hidden.scatter(1, kept[..., None].expand(-1, -1, 4), torch.nan)
    expected = merge_contextual_tokens(hidden, metric, 5, kept=kept, merge=merge)
    assert torch.equal(merge_contextual_tokens(poisoned, metric, 5, kept=kept, merge=merge).tokens, expected.tokens)


@merges
def test_a_batch_is_merged_as_its_sequences_are(merge: str) -> None:
    hidden, metric, kept = drawn(5, 47, 6, 8, 0)
    together = merge_contextual_tokens(hidden, metric, 4, kept=kept, merge=merge)
    for b in range(5):
        one = (x[b : b + 1] for x in (hidden, metric))
        alone = merge_contextual_tokens(*one, 4, kept=kept[b : b + 1], merge=merge)
        for all_of, of_one in zip(together, alone, strict=True):
            assert torch.equal(all_of[b : b + 1], of_one)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_under_vmap_kept_rows_are_not_looked_at() -> None:
    hidden, metric, kept = drawn(3, 13, 4, 2, 0)

    def merged(hidden: Tensor, metric: Tensor, kept: Tensor) -> Tensor:
        return merge_contextual_tokens(hidden[None], metric[None], 4, kept=kept[None]).tokens[0]

    expected = merge_contextual_tokens(hidden, metric, 4, kept=kept).tokens
    assert torch.allclose(torch.vmap(merged)(hidden, metric, kept), expected)


def test_an_empty_batch_has_no_tokens() -> None:
    merged = merge_contextual_tokens(torch.empty(0, 9, 4), torch.empty(0, 9, 2), 3)
    assert [part.shape for part in merged] == [(0, 3, 4), (0, 3), (0, 9)]
    assert select_dominant_tokens(torch.empty(0, 9), 3).shape == (0, 3)


@merges
def test_strides_do_not_matter(merge: str) -> None:
    hidden, metric, kept = drawn(2, 20, 6, 4, 0)
    wide = torch.nn.functional.pad(hidden, (0, 3, 1, 2), value=torch.nan)[:, 1:-2, :-3]
    expected = merge_contextual_tokens(hidden, metric, 4, kept=kept, merge=merge)
    strided = merge_contextual_tokens(wide, metric.mT.contiguous().mT, 4, kept=kept, merge=merge)
    assert torch.equal(expected.tokens, strided.tokens)


@merges
@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_gradients_are_right(merge: str, count: int) -> None:
    hidden, metric, kept = drawn(2, 11, 3, 3, 0, torch.float64)
    merged = functools.partial(merge_contextual_tokens, metric=metric, count=count, kept=kept, merge=merge)
    torch.autograd.gradcheck(lambda x: merged(x).tokens, (hidden.requires_grad_(),))


def test_no_gradient_reaches_the_metric() -> None:
    hidden, metric, kept = drawn(2, 11, 3, 3, 0)
    merged = merge_contextual_tokens(hidden, metric.requires_grad_(), 3, kept=kept)
    assert not any(part.requires_grad for part in merged)


def test_it_compiles_into_one_graph_forward_and_backward() -> None:
    def zipped(hidden: Tensor, metric: Tensor, scores: Tensor) -> Tensor:
        return merge_contextual_tokens(hidden, metric, 4, kept=select_dominant_tokens(scores, 5)).tokens

    hidden, metric, _ = drawn(2, 31, 8, 5, 0)
    results = []
    for function in (zipped, torch.compile(zipped, fullgraph=True)):
        leaf = hidden.clone().requires_grad_()
        tokens = function(leaf, metric, normal(2, 31))
        tokens.square().sum().backward()
        results.append((tokens, leaf.grad))
    torch.testing.assert_close(*results)


def test_rows_as_far_from_several_targets_join_the_first_of_them() -> None:
    """Where the cosine is 0 it is what rounding leaves of a sum of products, and that differs from target to target."""
    target = torch.tensor([3, 0, 1, -2, 2, 0, 2, 0])
    square = torch.tensor([-6, 66, -46, 4, 40, 66, -4, -66])  # at right angles to it
    assert torch.dot(target, square) == 0
    metric = torch.stack([target, square, -target, square, 2 * target, square])[None].float()
    merged = merge_contextual_tokens(torch.randn(1, 6, 4), metric, 3)
    assert merged.assignment.tolist() == [[0, 0, 1, 0, 2, 0]]
