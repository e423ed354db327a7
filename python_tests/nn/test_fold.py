"""``fold_`` merges what is linear and adjacent: the same function, fewer products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from python_tests.nn.test_local_cross_attention import OPTIONS, attention, inputs
from vr_kernels import LocalCrossAttention

options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@options
@pytest.mark.parametrize("salient", [False, True])
def test_folding_changes_the_function_by_rounding_only(options: dict[str, Any], salient: bool) -> None:
    module, (query, levels) = attention(**options), inputs()
    saliency = torch.rand(2, 4, 9, dtype=torch.float64) if salient else None
    expected = module(query, levels, saliency=saliency)
    assert module.fold_() is module
    torch.testing.assert_close(module(query, levels, saliency=saliency), expected, rtol=1e-12, atol=1e-12)


@options
@pytest.mark.parametrize("bias", [False, True])
def test_the_linears_around_it_fold_in(options: dict[str, Any], bias: bool) -> None:
    module, (query, levels) = attention(**options), inputs(width=5)
    before = nn.Linear(5, 12, bias=bias, dtype=torch.float64)
    after = nn.Linear(module.out_dim, 9, bias=bias, dtype=torch.float64)
    expected = after(module(before(query), levels))
    module.fold_(before=before, after=after)
    torch.testing.assert_close(module(query, levels), expected, rtol=1e-12, atol=1e-12)
    assert (module.query_dim, module.out_dim) == (5, 9)


def test_a_query_without_a_key_keeps_its_output() -> None:
    # The value bias that takes LayerNorm's shift must not reach a row that attends to nothing.
    module, (query, levels) = attention(feature_norm="all", bias=True), inputs()
    index = torch.tensor([[0, 1], [-1, -1], [2, -1]])
    rows = [level.flatten(0, 2) for level in levels]
    expected = module(query.flatten(0, 2)[:3], rows, window_index=index)
    folded = module.fold_()(query.flatten(0, 2)[:3], rows, window_index=index)
    torch.testing.assert_close(folded, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_made_in_float64(dtype: torch.dtype) -> None:
    module = attention(dtype, bias=True)
    before = nn.Linear(5, 12, dtype=dtype)
    exact = module.query_proj.weight.double() @ before.weight.double()
    module.fold_(before=before)
    assert module.query_proj.weight.dtype == dtype
    assert torch.equal(module.query_proj.weight, exact.to(dtype))


def test_what_is_merged_away_is_gone_from_the_state_dict() -> None:
    module = attention(feature_norm="level", bias=True).fold_()
    assert "key_bias" not in module.state_dict()
    assert "norm_bias" not in module.state_dict()
    assert (module.norm_weight == 1).all()


def test_a_folded_module_still_trains_and_copies() -> None:
    module, (query, levels) = attention(torch.float32, feature_norm="level").fold_(), inputs(torch.float32)
    module(query, levels).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def parametrised(name: str) -> LocalCrossAttention:
    module = attention()
    holder, _, attribute = name.rpartition(".")
    parametrize.register_parametrization(module.get_submodule(holder), attribute, Doubled())
    return module


@pytest.mark.parametrize("name", ["key_weight", "value_weight", "query_proj.weight", "out_proj.weight"])
def test_what_does_more_than_its_weight_says_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"LocalCrossAttention.fold_: {name.split('.')[0]} .*plain"):
        parametrised(name).fold_()


def test_a_refusal_leaves_the_module_as_it_was() -> None:
    module, (query, levels) = attention(feature_norm="all", bias=True), inputs()
    expected = module(query, levels)
    with pytest.raises(ValueError, match="before does not fit: 7 features come out of one Linear, 12 go into the next"):
        module.fold_(before=nn.Linear(5, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="after does not fit: 12 features come out of one Linear, 7 go into the next"):
        module.fold_(before=nn.Linear(12, 12, dtype=torch.float64), after=nn.Linear(7, 5, dtype=torch.float64))
    assert torch.equal(module(query, levels), expected)
