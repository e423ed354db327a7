"""VisionZip's rule on given hidden states, scores and keys, and the order of an AnyRes image's tokens."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.compression import _visionzip
from vr_kernels.compression import anyres_order, dominance, key_metric, pack_anyres, zip_tokens

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)


def drawn(batch: int, rows: int, has_cls: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, scores with ties, metric"""
    generator = torch.Generator().manual_seed(rows)
    hidden, metric = (torch.randn(batch, rows, width, generator=generator).to(dtype) for width in (6, 3))
    scores = torch.randint(0, 9, (batch, rows - has_cls), generator=generator).to(dtype) / 8
    return hidden, scores, metric


@dtypes
@pytest.mark.parametrize("has_cls", [True, False], ids=["CLS", "no CLS"])
@pytest.mark.parametrize("merge", ["sum", "mean"])
@pytest.mark.parametrize(("dominant", "contextual"), [(1, 1), (1, 0), (5, 3), (7, 6), (13, 0), (1, 12), (4, 9)])
def test_it_is_the_rule(dtype: torch.dtype, has_cls: bool, merge: str, dominant: int, contextual: int) -> None:
    hidden, scores, metric = drawn(3, 13, has_cls, dtype)
    zipped = zip_tokens(hidden, scores, metric, dominant, contextual, has_cls=has_cls, merge=merge)
    assert zipped.tokens.shape == (3, dominant + contextual, 6)
    assert zipped.tokens.dtype == dtype
    for b in range(3):
        image = (hidden[b].double(), scores[b], metric[b])
        expected = _visionzip.visionzip(*image, dominant, contextual, has_cls=has_cls, kind=merge)
        assert zipped.dominant[b].tolist() == expected.dominant
        assert zipped.targets[b].tolist() == expected.targets
        assert zipped.assignment[b].tolist() == expected.assignment
        assert torch.equal(zipped.tokens[b, :dominant], hidden[b, _kept(expected, has_cls)])
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(zipped.tokens[b].double(), expected.tokens, atol=tolerance, rtol=tolerance)


def _kept(expected: _visionzip.Zipped, has_cls: bool) -> list[int]:
    return [*range(has_cls), *(patch + has_cls for patch in expected.dominant)]


def test_without_cls_row_nothing_need_be_kept() -> None:
    hidden, scores, metric = drawn(2, 9, has_cls=False)
    zipped = zip_tokens(hidden, scores, metric, 0, 4, has_cls=False)
    assert zipped.tokens.shape == (2, 4, 6)
    assert zipped.dominant.shape == (2, 0)


def test_the_whole_budget_leaves_every_row_as_it_is() -> None:
    hidden, scores, metric = drawn(2, 9, has_cls=True)
    assert torch.equal(zip_tokens(hidden, scores, metric, 9, 0).tokens, hidden)


def test_gradients_reach_the_hidden_states_alone() -> None:
    hidden, scores, metric = drawn(2, 9, True, torch.float64)
    scores.requires_grad_()
    metric.requires_grad_()
    assert not zip_tokens(hidden, scores, metric, 3, 2).tokens.requires_grad
    torch.autograd.gradcheck(lambda x: zip_tokens(x, scores, metric, 3, 2).tokens, (hidden.requires_grad_(),))


@dtypes
@pytest.mark.parametrize("has_cls", [True, False], ids=["CLS", "no CLS"])
def test_scores_are_those_of_the_attention_map(dtype: torch.dtype, has_cls: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 33, 4, 8, generator=generator).to(dtype) for _ in range(2))
    maps = (torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) / 8**0.5).softmax(-1)
    exact = maps[:, :, 0].sum(1) if has_cls else maps.mean((1, 2))
    scores = dominance(query.requires_grad_(), key, has_cls=has_cls)
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    assert not scores.requires_grad
    torch.testing.assert_close(scores.double(), exact, atol=0, rtol=max(torch.finfo(dtype).eps, 1e-6))
    torch.testing.assert_close(key_metric(key).double(), key.double().mean(2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_are_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    """Rounded, the 577 scores of this flat map have a few dozen values."""
    query, key = (torch.randn(1, 577, 16, 64, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    scores = dominance(query / 8, key, has_cls=True)
    assert len(scores.unique()) > 550
    assert len(scores.to(dtype).unique()) < 300


HIDDEN, SCORES, METRIC = drawn(2, 9, has_cls=True)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dominant": 0}, ValueError, "dominant is 0; it must be at least 1, since it counts the CLS row"),
    ({"dominant": 2.0}, TypeError, r"dominant is 2\.0; it must be an int"),
    ({"contextual": -1}, ValueError, "contextual is -1; it must be at least 0"),
    ({"dominant": 7, "contextual": 3}, ValueError, "an image has 9 rows here"),
    ({"scores": None}, TypeError, "scores is None; it must be a torch.Tensor"),
    ({"hidden": "h"}, TypeError, "hidden is a str; it must be a torch.Tensor"),
    ({"hidden": HIDDEN[0]}, ValueError, r"hidden has shape \(9, .*\); it must be \(B, N, D\)"),
    ({"scores": torch.zeros(2, 9)}, ValueError, r"scores has shape \(2, 9\); it must be \(2, 8\)"),
    ({"has_cls": False, "scores": torch.zeros(2, 9), "dominant": 0, "contextual": 0}, ValueError, "are both 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_budgets_that_cannot_be_met_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"hidden": HIDDEN, "scores": SCORES, "metric": METRIC, "dominant": 3, "contextual": 2} | change
    with pytest.raises(error, match=f"zip_tokens: .*{message}"):
        zip_tokens(**call)


# AnyRes


def expected_order(
    dominant: list[list[int]], across: int, grid: tuple[int, int], contextual: int, cls: int
) -> list[int]:
    """By walking over the stitched canvas."""
    height, width = grid
    down, rows = len(dominant) // across, cls + len(dominant[0]) + contextual
    order = []
    for y, x in product(range(down * height), range(across * width)):
        tile, patch = y // height * across + x // width, y % height * width + x % width
        if patch in dominant[tile]:
            order.append(tile * rows + cls + dominant[tile].index(patch))
    order += [tile * rows for tile in range(len(dominant))] * cls
    return order + [(tile + 1) * rows - contextual + c for tile in range(len(dominant)) for c in range(contextual)]


@pytest.mark.parametrize("tiles", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (3, 2)], ids=str)
@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 7)], ids=str)
@pytest.mark.parametrize("contextual", [0, 2])
@pytest.mark.parametrize("has_cls", [True, False], ids=["CLS", "no CLS"])
def test_tiles_are_stitched(tiles: tuple[int, int], grid: tuple[int, int], contextual: int, has_cls: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    patches = [
        torch.randperm(grid[0] * grid[1], generator=generator)[:4].sort().values for _ in range(tiles[0] * tiles[1])
    ]
    dominant = torch.stack(patches)
    order = anyres_order(dominant, tiles=tiles, grid=grid, contextual=contextual, has_cls=has_cls)
    assert order.tolist() == expected_order(dominant.tolist(), tiles[1], grid, contextual, int(has_cls))
    assert sorted(order.tolist()) == list(range(len(order)))


def test_the_base_tile_comes_first_as_it_is() -> None:
    tokens, dominant = torch.arange(12.0).view(3, 4, 1), torch.tensor([[1, 2], [0, 3], [1, 2]])
    packed = pack_anyres(tokens, dominant, tiles=(1, 2), grid=(2, 2), contextual=1, newline=torch.ones(1))
    assert packed.flatten().tolist() == [0, 1, 2, 3, 5, 9, 6, 10, 4, 8, 7, 11]


@dtypes
def test_a_base_tile_alone_gets_one_newline(dtype: torch.dtype) -> None:
    tokens = torch.arange(4.0, dtype=dtype).view(1, 4, 1)
    places: dict[str, Any] = {"tiles": (0, 0), "grid": (2, 2), "contextual": 1}
    packed = pack_anyres(tokens, torch.tensor([[1, 2]]), newline=torch.full((1,), 9.0), **places)
    assert packed.dtype == dtype
    assert packed.flatten().tolist() == [0, 1, 2, 3, 9]
    assert torch.equal(pack_anyres(tokens, torch.tensor([[1, 2]]), **places), tokens[0])


def test_tiles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"anyres_order: dominant has shape \(3, 2\); it must be \(4, k\)"):
        anyres_order(torch.zeros(3, 2, dtype=torch.int64), tiles=(2, 2), grid=(2, 2), contextual=1)
    tokens, dominant = torch.zeros(5, 8, 3), torch.zeros(5, 5, dtype=torch.int64)
    places: dict[str, Any] = {"tiles": (2, 2), "grid": (3, 3)}
    with pytest.raises(
        ValueError, match=r"^pack_anyres: tokens has shape \(5, 8, 3\), dominant \(4, 5\); they must be"
    ):
        pack_anyres(tokens, dominant[1:], contextual=2, **places)
    for contextual, has_cls, words in ((1, True, "7, a CLS row, 5 dominant and 1"), (2, False, "7, 5 dominant and 2")):
        with pytest.raises(ValueError, match=f"^pack_anyres: a tile has 8 tokens; it must have {words} contextual"):
            pack_anyres(tokens, dominant, contextual=contextual, has_cls=has_cls, **places)
