"""``cls_saliency`` and ``attention_density``: what is built on importance in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import DTYPES, Call
from python_tests._errors import assert_obeys_the_error_rule
from vr_kernels.ops.saliency import cls_saliency


def saliency_call(seed: int = 0, *, dtype: torch.dtype = torch.float32, **options: Any) -> Call:
    g = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 4, 8, generator=g), torch.randn(2, 10, 4, 8, generator=g)
    return {"cls_query": query.to(dtype), "key": key.to(dtype)[:, 1:], **options}


def formula(cls_query: Tensor, key: Tensor, *, source: str = "logits", reduce: str = "mean") -> Tensor:
    """v1 Eq. 3, written with stock PyTorch."""
    weights = (torch.einsum("bhd,bnhd->bhn", cls_query, key) * cls_query.shape[-1] ** -0.5).to(
        torch.promote_types(key.dtype, torch.float32)
    )
    if source == "probs":
        weights = weights.softmax(-1)
    if reduce == "mean_of_sigmoid":
        return weights.sigmoid().mean(1).to(key.dtype)
    reduced = {"mean": weights.mean, "sum": weights.sum, "max": weights.amax}[reduce](1)
    return reduced.sigmoid().to(key.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", ["mean", "sum", "mean_of_sigmoid"])
@pytest.mark.parametrize("source", ["logits", "probs"])
def test_it_obeys_the_error_rule(source: str, reduce: str, dtype: torch.dtype) -> None:
    options = {"source": source, "reduce": reduce}
    assert_obeys_the_error_rule(
        cls_saliency, formula, formula, lambda seed: saliency_call(seed, dtype=dtype, **options), draws=5
    )


def test_the_largest_head_decides() -> None:
    call = saliency_call(reduce="max")
    torch.testing.assert_close(cls_saliency(**call), formula(**call))


def test_probabilities_make_an_almost_constant_map() -> None:
    query, key = torch.randn(1, 16, 64), torch.randn(1, 576, 16, 64)
    probs, logits = (cls_saliency(query, key, source=source) for source in ("probs", "logits"))
    assert 0.5 <= probs.min() < probs.max() < 0.511
    assert logits.max() - logits.min() > 0.2


def test_it_is_the_saliency_of_local_attention() -> None:
    saliency = cls_saliency(torch.randn(1, 4, 8), torch.randn(1, 17, 4, 8)[:, 1:]).unflatten(1, (4, 4))
    query, key = torch.randn(1, 2, 2, 1, 8), torch.randn(1, 4, 4, 1, 8)
    assert vr_kernels.local_attention(query, key, saliency=saliency).shape == query.shape


def test_the_backend_is_the_rows_one() -> None:
    explanation = vr_kernels.explain(cls_saliency, **saliency_call())
    assert explanation.operator == "cls_saliency"
    assert explanation.chosen == "cpu"


REFUSED: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "cls_query has shape (2, 1, 4, 8); it must be (B, h, d)": (ValueError, {"cls_query": torch.ones(2, 1, 4, 8)}),
    "cls_query is torch.int64; it must be float32": (TypeError, {"cls_query": torch.ones(2, 4, 8).long()}),
    "key has width 9, cls_query has 8; they must be equal": (ValueError, {"key": torch.ones(2, 9, 4, 9)}),
    "key has batch 3, cls_query has 2; they must be equal": (ValueError, {"key": torch.ones(3, 9, 4, 8)}),
    'source is \'scores\'; it must be "logits" or "probs"': (ValueError, {"source": "scores"}),
    'reduce is None; it must be "mean" or "sum" or "max" or "mean_of_sigmoid"': (ValueError, {"reduce": None}),
    "scale is '1'; it must be a number or None": (TypeError, {"scale": "1"}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_in_words(words: str) -> None:
    exception, fault = REFUSED[words]
    with pytest.raises(exception) as caught:
        cls_saliency(**(saliency_call() | fault))
    assert str(caught.value).startswith(f"cls_saliency: {words}")


def test_even_attention_has_density_one() -> None:
    attention = torch.full((3, 10), 0.37)
    mask = torch.zeros(10, dtype=torch.bool)
    mask[2:6] = True
    torch.testing.assert_close(vr_kernels.attention_density(attention, mask), torch.ones(3))


def test_density_is_the_ratio_of_mean_attentions() -> None:
    query, key = torch.randn(2, 30, 4, 8), torch.randn(2, 30, 2, 8)
    mask = torch.rand(2, 30) < 0.4
    received = vr_kernels.attention_received(query, key, causal=True)
    expected = torch.stack([row[m].mean() / row.mean() for row, m in zip(received, mask, strict=True)])
    torch.testing.assert_close(vr_kernels.attention_density(received, mask), expected)


def test_no_vision_token_has_no_density() -> None:
    density = vr_kernels.attention_density(torch.ones(2, 4), torch.tensor([[True] * 4, [False] * 4]))
    assert density[0] == 1
    assert density[1].isnan()


def test_density_refuses_what_is_no_mask() -> None:
    with pytest.raises(TypeError, match=r"attention_density: vision_mask is torch.int64; it must be torch.bool"):
        vr_kernels.attention_density(torch.ones(4), torch.ones(4).long())
    with pytest.raises(ValueError, match=r"attention_density: vision_mask has shape \(5,\), attention has \(2, 4\)"):
        vr_kernels.attention_density(torch.ones(2, 4), torch.ones(5, dtype=torch.bool))
