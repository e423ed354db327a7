"""The pruning rules on given queries, keys, scores and states: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from python_tests.compression import _vispruner
from python_tests.compression._density_peaks import clusters
from vr_kernels.compression.pruning import (
    budget,
    density_peak_means,
    diverse_tokens,
    fastv,
    keep_highest,
    pyramiddrop,
    random_rows,
    rate_by_text,
    recycle,
    text_raters,
    vispruner,
)

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)


def attention(batch: int, rows: int, dtype: torch.dtype, heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, and the causal map in float64: (B, h, N, N)"""
    generator = torch.Generator().manual_seed(rows)
    query = torch.randn(batch, rows, heads, 8, generator=generator).to(dtype)
    key = torch.randn(batch, rows, heads // 2, 8, generator=generator).to(dtype)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double().repeat_interleave(2, 2)) / 8**0.5
    maps = scores.masked_fill(torch.ones(rows, rows).triu(1).bool(), -torch.inf).softmax(-1)
    return query, key, maps


def best(scores: list[float], candidates: list[int], count: int) -> set[int]:
    return set(sorted(candidates, key=lambda i: (-scores[i], i))[:count])


@dtypes
@pytest.mark.parametrize("keep_ratio", [0.0, 0.3, 0.5, 1.0])
def test_fastv_keeps_what_the_last_row_attends_to(dtype: torch.dtype, keep_ratio: float) -> None:
    query, key, maps = attention(3, 13, dtype)
    vision = torch.zeros(3, 13, dtype=torch.bool)
    vision[0, 2:9], vision[1, 1:12] = True, True
    keep = fastv(query[:, -1:], key, vision, keep_ratio)
    for b in range(3):
        candidates = vision[b].nonzero()[:, 0].tolist()
        kept = best(maps[b].mean(0)[-1].tolist(), candidates, int(len(candidates) * keep_ratio))
        assert keep[b].nonzero()[:, 0].tolist() == [i for i in range(13) if i in kept or i not in candidates]


def test_padding_is_not_attended_to() -> None:
    query, key, _ = attention(1, 9, torch.float32)
    vision = torch.tensor([[False, False, True, True, True, True, False, False, False]])
    valid = torch.tensor([[False] * 3 + [True] * 6])
    poisoned = key.masked_fill(~valid[..., None, None], 1e30)
    keep = pyramiddrop(query[:, -1:], poisoned, vision & valid, 0.5, [4], valid=valid)
    alone = pyramiddrop(query[:, -1:], key[:, 3:], vision[:, 3:], 0.5, [4])
    assert torch.equal(keep[:, 3:], alone)
    assert keep[:, :3].all()


def test_pyramiddrop_counts_by_the_prompts_tokens() -> None:
    query, key, _ = attention(2, 12, torch.float32)
    vision = torch.zeros(2, 12, dtype=torch.bool)
    vision[:, 1:7] = True  # of 13 and 9 there were
    keep = pyramiddrop(query[:, -1:], key, vision, 0.25, [13, 9])
    assert (keep & vision).sum(1).tolist() == [3, 2]


@given(st.data())
def test_the_highest_stay_and_of_equal_ones_the_first(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 7))
    cell = st.sampled_from([0.0, 1.0, 2.0, float("nan"), float("-inf")])
    rows = st.lists(cell, min_size=length, max_size=length)
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    scores = [data.draw(rows) for _ in range(batch)]
    candidates = [data.draw(flags) for _ in range(batch)]
    counts = [data.draw(st.integers(0, length + 1)) for _ in range(batch)]
    keep = keep_highest(
        torch.tensor(scores).view(batch, length), torch.tensor(candidates, dtype=torch.bool).view(batch, length), counts
    )
    for b in range(batch):
        plain = [-torch.inf if x != x else x for x in scores[b]]
        own = [i for i in range(length) if candidates[b][i]]
        kept = best(plain, own, counts[b])
        assert keep[b].tolist() == [i in kept or i not in own for i in range(length)]


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(576, 0.5, 288), (577, 0.125, 72), (5, 0.1, 0), (0, 1.0, 0)])
def test_a_share_is_rounded_down(tokens: int, ratio: float, kept: int) -> None:
    assert budget(tokens, ratio) == kept


def test_chance_depends_on_the_seed_and_the_number_alone() -> None:
    vision = torch.zeros(3, 30, dtype=torch.bool)
    vision[0, 3:23], vision[1, 10:30], vision[2, 0:7] = True, True, True
    keep = random_rows(vision, 0.5, seed=1)
    assert (keep & vision).sum(1).tolist() == [10, 10, 3]
    assert keep[~vision].all()
    assert torch.equal(keep[0, 3:23], keep[1, 10:30])
    assert torch.equal(keep[:1], random_rows(vision[:1], 0.5, seed=1))
    assert not torch.equal(keep, random_rows(vision, 0.5, seed=2))


def test_chance_is_even() -> None:
    vision = torch.ones(1, 6, dtype=torch.bool)
    kept = torch.stack([random_rows(vision, 0.5, seed=seed)[0] for seed in range(600)]).double().mean(0)
    assert (kept - 0.5).abs().max() < 4 * (0.25 / 600) ** 0.5


@dtypes
def test_raters_rate_each_by_the_tokens_up_to_itself(dtype: torch.dtype) -> None:
    query, key, maps = attention(2, 11, dtype)
    raters = torch.zeros(2, 11, dtype=torch.bool)
    raters[0, [6, 9]], raters[1, 10] = True, True
    rated = rate_by_text([query[b, raters[b]] for b in range(2)], key, raters)
    expected = torch.stack([maps[0].mean(0)[[6, 9]].mean(0), maps[1].mean(0)[10]])
    assert rated.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(rated.double(), expected, atol=1e-6, rtol=1e-5)


def test_raters_do_not_see_padding() -> None:
    query, key, _ = attention(1, 8, torch.float32)
    raters, valid = torch.zeros(1, 8, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    raters[0, 5:], valid[0, :2] = True, False
    rated = rate_by_text([query[0, 5:]], key.masked_fill(~valid[..., None, None], 1e30), raters, valid)
    alone = rate_by_text([query[0, 5:]], key[:, 2:], raters[:, 2:])
    torch.testing.assert_close(rated[:, 2:], alone)
    assert (rated[:, :2] == 0).all()


def test_text_behind_the_image_rates_where_it_is_relevant_above_the_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(3, 12, 5, generator=generator)
    vision, valid = torch.zeros(3, 12, dtype=torch.bool), torch.ones(3, 12, dtype=torch.bool)
    vision[0, 2:7], vision[1, 4:10], vision[1, 2], vision[2, 5:] = True, True, True, True
    valid[0, 11] = False
    raters = text_raters(embeddings, vision, valid)
    for b, text in ((0, range(7, 11)), (1, range(10, 12))):
        products = embeddings[b, vision[b]].double() @ embeddings[b, list(text)].double().T
        relevance = products.softmax(1).mean(0)
        expected = [t for t, x in zip(text, relevance, strict=True) if x > relevance.mean()]
        assert raters[b].nonzero()[:, 0].tolist() == expected
    assert raters[2].nonzero()[:, 0].tolist() == [11]  # no text there: the last row


def test_equally_relevant_text_rates_all_of_it() -> None:
    vision = torch.tensor([[True, False, False]])
    assert text_raters(torch.ones(1, 3, 4), vision).tolist() == [[False, True, True]]


def test_clusters_are_found_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    member = torch.arange(30) % 3
    tokens = centres[member] + torch.randn(30, 2, generator=generator)
    means = density_peak_means(tokens, 3)
    expected = torch.stack([tokens[member == c].mean(0) for c in range(3)])
    nearest = torch.cdist(means, expected).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    torch.testing.assert_close(means, expected[nearest])


@dtypes
@pytest.mark.parametrize(("tokens", "count"), [(23, 3), (40, 5), (7, 1), (6, 6), (1, 1)])
def test_clusters_are_those_of_the_rule(dtype: torch.dtype, tokens: int, count: int) -> None:
    drawn = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    means = density_peak_means(drawn, count)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(means.double(), clusters(drawn.double(), count), atol=tolerance, rtol=tolerance)


@dtypes
def test_equal_tokens_are_clustered_without_noise(dtype: torch.dtype) -> None:
    means = density_peak_means(torch.full((7, 3), 2.0, dtype=dtype), 2)
    assert means.dtype == dtype
    assert torch.equal(means, torch.full((2, 3), 2.0, dtype=dtype))


@pytest.mark.parametrize(("dropped", "left"), [(276, 9), (30, 2), (29, 1), (1, 1), (0, 0)])
def test_a_share_of_the_dropped_becomes_a_tenth(dropped: int, left: int) -> None:
    assert recycle(torch.randn(dropped, 4), torch.rand(dropped)).shape == (left, 4)
    assert recycle(torch.randn(dropped, 4), torch.rand(dropped), share=0.0).shape == (0, 4)


def test_the_best_of_the_dropped_are_recycled() -> None:
    tokens, scores = torch.arange(10.0)[:, None], torch.tensor([0.0, 9, 1, 2, 8, 3, 4, 7, 5, 6])
    assert recycle(tokens, scores).item() == torch.tensor([1.0, 4, 7, 9]).mean()


def test_gradients_reach_recycled_tokens() -> None:
    tokens = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: recycle(x, torch.arange(12.0), tokens_a_cluster=2), (tokens,))


@dtypes
@pytest.mark.parametrize(("count", "share"), [(8, 0.5), (9, 0.4), (1, 0.5), (0, 0.5), (23, 0.5), (7, 0.0), (7, 1.0)])
def test_vispruner_is_the_rule(dtype: torch.dtype, count: int, share: float) -> None:
    generator = torch.Generator().manual_seed(count)
    scores = (torch.randint(0, 9, (3, 23), generator=generator) / 8).to(dtype)  # with ties
    features = torch.randn(3, 23, 6, generator=generator).to(dtype)
    kept = vispruner(scores, features, count, share, step=3)
    for b in range(3):
        expected = _vispruner.vispruner(scores[b].tolist(), features[b].double(), count, share, step=3)
        assert kept[b].tolist() == expected


def test_the_most_alike_of_the_even_ones_go_first() -> None:
    """Of the evens 0, 2, 4 only 2 has a likeness among the odds."""
    features = torch.eye(5)
    features[3] = features[2]
    kept = diverse_tokens(features[None], torch.arange(5)[None], 4, step=1)
    assert sorted(kept[0].tolist()) == [0, 1, 3, 4]


def test_an_empty_batch_is_pruned_to_an_empty_one() -> None:
    assert vispruner(torch.rand(0, 9), torch.randn(0, 9, 4), 5).shape == (0, 5)
    assert random_rows(torch.ones(0, 9, dtype=torch.bool)).shape == (0, 9)


FLAGS, STATES, ORDER = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 4, 8), torch.arange(5).expand(2, 5)
MISFITS: list[tuple[Any, type[Exception], str]] = [
    (lambda: fastv(STATES[:, :1], STATES, FLAGS[:, 1:]), ValueError, r"fastv: vision has shape \(2, 4\); .* \(2, 5\)"),
    (lambda: fastv(STATES[:, :1], STATES, FLAGS.long()), TypeError, r"fastv: vision is torch\.int64; .* torch\.bool"),
    (lambda: fastv(STATES[:, :1, :3], STATES, FLAGS), ValueError, "attention_importance: .*heads"),
    (
        lambda: pyramiddrop(STATES[:, :1], STATES, FLAGS, 0.5, [4]),
        ValueError,
        "originals has 1 numbers; it must have 2",
    ),
    (lambda: random_rows(FLAGS[0]), ValueError, r"random_rows: vision has shape \(5,\); it must be \(B, N\)"),
    (lambda: keep_highest(torch.rand(2, 4), FLAGS, [1, 1]), ValueError, "keep_highest: candidates has shape"),
    (lambda: text_raters(torch.randn(2, 4, 3), FLAGS), ValueError, "text_raters: vision has shape"),
    (lambda: rate_by_text(list(STATES), STATES, FLAGS[:1]), ValueError, "rate_by_text: raters has shape"),
    (lambda: density_peak_means(torch.randn(3, 2), 4), ValueError, "count is 4; it must be from 1 to 3"),
    (
        lambda: fastv(STATES[:, :1], STATES, FLAGS, 2.0),
        ValueError,
        r"fastv: keep_ratio is 2\.0; it must be from 0 to 1",
    ),
    (lambda: fastv(STATES[:, :1], STATES, FLAGS, torch.nan), ValueError, "fastv: keep_ratio is nan; it must be finite"),
    (
        lambda: pyramiddrop(STATES[:, :1], STATES, FLAGS, -1, [5, 5]),
        ValueError,
        "pyramiddrop: keep_ratio is -1; it must",
    ),
    (lambda: random_rows(FLAGS, "half"), TypeError, "random_rows: keep_ratio is 'half'; it must be a number"),
    (lambda: budget(5, 1.5), ValueError, r"budget: ratio is 1\.5; it must be from 0 to 1"),
    (lambda: keep_highest(torch.rand(2, 5), FLAGS, [1]), ValueError, "counts has 1 numbers; it must have 2, one a seq"),
    (lambda: rate_by_text([STATES[0]], STATES, FLAGS), ValueError, "queries has 1 tensors; it must have 2, one a seq"),
    (lambda: rate_by_text(list(STATES[:, 1:]), STATES, FLAGS), ValueError, r"queries\[0\] has 4 rows; it must have 5"),
    (lambda: recycle(torch.randn(9, 4), torch.rand(5)), ValueError, r"recycle: scores has shape \(5,\); .* \(9,\)"),
    (lambda: recycle(torch.randn(9, 4), torch.rand(9), share=2), ValueError, "recycle: share is 2; it must be from 0"),
    (
        lambda: recycle(torch.randn(9, 4), torch.rand(9), tokens_a_cluster=0),
        ValueError,
        "recycle: tokens_a_cluster is 0; it must be at least 1",
    ),
    (lambda: diverse_tokens(STATES[..., 0], ORDER, 2, step=0), ValueError, "diverse_tokens: step is 0; it must be at"),
    (
        lambda: diverse_tokens(STATES[..., 0], ORDER, 6),
        ValueError,
        "diverse_tokens: count is 6; it must be from 0 to 5",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), MISFITS, ids=[message for *_, message in MISFITS])
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"count": 24}, ValueError, "count is 24; it must be from 0 to 23"),
    ({"count": -1}, ValueError, "count is -1; it must be at least 0"),
    ({"count": 2.5}, TypeError, r"count is 2\.5; it must be an int"),
    ({"important_ratio": 2.0}, ValueError, r"important_ratio is 2\.0; it must be from 0 to 1"),
    ({"important_ratio": "half"}, TypeError, "important_ratio is 'half'; it must be a number"),
    ({"step": 0}, ValueError, "step is 0; it must be at least 1"),
    ({"scores": torch.rand(23)}, ValueError, r"scores has shape \(23,\); it must be \(B, P\)"),
    ({"features": torch.rand(1, 22, 4)}, ValueError, r"features has shape \(1, 22, 4\); it must be \(B, P, D\)"),
    ({"features": None}, TypeError, "features is None; it must be a torch.Tensor"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_no_image_has_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"vispruner: .*{message}"):
        vispruner(**({"scores": torch.rand(1, 23), "features": torch.randn(1, 23, 4), "count": 4} | change))
