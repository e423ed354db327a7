"""``GlobalCrossAttention``: ``LocalCrossAttention`` whose windows are whole tiles, by other means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vr_kernels import DeformableCrossAttention, GlobalCrossAttention, LocalCrossAttention, cls_saliency

WIDTHS = (6, 10)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "norm over all": {"feature_norm": "all"},
    "norm of each level": {"feature_norm": "level", "bias": True},
    "own sizes": {"head_dim": 5, "out_dim": 7, "bias": True},
    "saliency on features": {"saliency_on": "feature", "feature_norm": "level", "bias": True},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    """2 x 4 tokens in each of three tiles of 3 x 5 features, which no window divides."""
    return torch.randn(3, 2, 4, 12, dtype=dtype) * 3, [torch.randn(3, 3, 5, w, dtype=dtype) for w in WIDTHS]


def attention(dtype: torch.dtype = torch.float64, **options: Any) -> GlobalCrossAttention:
    module = GlobalCrossAttention(12, WIDTHS, 3, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def local_over_whole_tiles(module: GlobalCrossAttention, **options: Any) -> Any:
    """The same call of a ``LocalCrossAttention`` with these parameters, each token's window its tile's 15 rows."""
    twin = LocalCrossAttention(12, WIDTHS, 3, dtype=module.key_weight.dtype, backend="reference", **options)
    twin.load_state_dict(module.state_dict(), strict=True)
    index = torch.arange(3 * 15).view(3, 1, 15).expand(3, 8, 15).flatten(0, 1)

    def call(query: Tensor, levels: list[Tensor], saliency: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = [level.flatten(0, 2) for level in levels]
        flat = None if saliency is None else saliency.flatten()
        out, weights = twin(query.flatten(0, 2), rows, window_index=index, saliency=flat, need_weights=True)
        return out.view(3, 2, 4, -1), weights.view(3, 2, 4, 3, 15)

    return call


@options
@pytest.mark.parametrize("salient", [False, True])
def test_it_is_local_cross_attention_whose_windows_are_the_tiles(options: dict[str, Any], salient: bool) -> None:
    module, (query, levels) = attention(**options), inputs()
    saliency = torch.rand(3, 3, 5, dtype=torch.float64) if salient else None
    expected, expected_weights = local_over_whole_tiles(module, **options)(query, levels, saliency)
    out, weights = module(query, levels, saliency=saliency, need_weights=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(query, levels, saliency=saliency), expected, rtol=1e-12, atol=1e-12)


@options
def test_its_gradients_are_local_cross_attention_s(options: dict[str, Any]) -> None:
    module, (query, levels) = attention(**options), inputs()
    saliency = torch.rand(3, 3, 5, dtype=torch.float64).requires_grad_()
    leaves = [query.requires_grad_(), saliency, *(level.requires_grad_() for level in levels)]
    call = local_over_whole_tiles(module, **options)
    out, expected = module(query, levels, saliency=saliency), call(query, levels, saliency)[0]
    cotangent = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    module(query, levels).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_tile_sees_nothing_of_another() -> None:
    module, (query, levels) = attention(torch.float32), inputs(torch.float32)
    expected = module(query, levels)
    for level in levels:
        level[1] = torch.nan
    out = module(query, levels)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert out[1].isnan().all()


def test_an_empty_batch_gives_an_empty_result() -> None:
    module, (query, levels) = attention(torch.float32), inputs(torch.float32)
    assert module(query[:0], [level[:0] for level in levels]).shape == (0, 2, 4, 12)


def test_one_level_of_one_feature_gives_its_value_to_every_token() -> None:
    module = GlobalCrossAttention(12, 16, 2, dtype=torch.float64)
    level = torch.randn(1, 1, 1, 16, dtype=torch.float64)
    out = module(torch.randn(1, 2, 2, 12, dtype=torch.float64), level)
    expected = level @ module.value_weight.T @ module.out_proj.weight.T
    torch.testing.assert_close(out, expected.expand(1, 2, 2, 12), rtol=1e-12, atol=1e-12)


def test_autocast_computes_in_bfloat16() -> None:
    module, (query, levels) = attention(torch.float32, feature_norm="level"), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(query, levels, saliency=torch.rand(3, 3, 5))
    assert out.dtype == torch.bfloat16
    assert (out - module(query, levels, saliency=torch.ones(3, 3, 5))).isfinite().all()


def test_it_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    module, (query, levels) = attention(torch.float32, feature_norm="level"), inputs(torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, levels), module(query, levels))


REFUSALS: dict[str, dict[str, Any]] = {
    "window_index is given, and a token reads its whole tile": {"window_index": torch.zeros(8, 2, dtype=torch.int64)},
    "query has shape (8, 12); it must be (B, n_h, n_w, D_q)": {"query": torch.zeros(8, 12)},
    "query has width 11, query_dim is 12; they must be equal": {"query": torch.zeros(3, 2, 4, 11)},
    "features have widths (6,), feature_dims is (6, 10)": {"features": torch.zeros(3, 3, 5, 6)},
    "features[0] has shape (3, 15, 6); it must be (B, H, W, D)": {
        "features": [torch.zeros(3, 15, 6), torch.zeros(3, 15, 10)]
    },
    "features[1] has batch 2, query has 3; make them equal": {
        "features": [torch.zeros(3, 3, 5, 6), torch.zeros(2, 3, 5, 10)]
    },
    "features[1] has grid (5, 3), features[0] has (3, 5); all levels must share one grid": {
        "features": [torch.zeros(3, 3, 5, 6), torch.zeros(3, 5, 3, 10)]
    },
    "features[0] has grid (0, 5); a token needs a feature to attend to": {
        "features": [torch.zeros(3, 0, 5, 6), torch.zeros(3, 0, 5, 10)]
    },
    "saliency has shape (3, 15); it must be (3, 3, 5)": {"saliency": torch.zeros(3, 15)},
}


@pytest.mark.parametrize(("words", "fault"), REFUSALS.items(), ids=range(len(REFUSALS)))
def test_bad_calls_are_refused_in_words(words: str, fault: dict[str, Any]) -> None:
    query, levels = inputs(torch.float32)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        attention(torch.float32)(**({"query": query, "features": levels} | fault))
    assert str(caught.value).startswith(f"GlobalCrossAttention: {words}")


def test_what_it_cannot_be_built_with_is_refused_under_its_own_name() -> None:
    with pytest.raises(ValueError, match="GlobalCrossAttention: num_heads is 5, query_dim is 12"):
        GlobalCrossAttention(12, WIDTHS, 5)
    with pytest.raises(ValueError, match="GlobalCrossAttention: backend is 'cpu'; it must be None"):
        GlobalCrossAttention(12, WIDTHS, 3, backend="cpu")


@pytest.mark.parametrize("kind", [LocalCrossAttention, GlobalCrossAttention, DeformableCrossAttention])
def test_a_saliency_map_in_autocasts_dtype_may_stand_beside_a_float32_query(kind: type[nn.Module]) -> None:
    query, features = torch.randn(1, 2, 2, 8), torch.randn(1, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        saliency = cls_saliency(torch.randn(1, 2, 8), torch.randn(1, 16, 2, 8)).unflatten(1, (4, 4))
        assert saliency.dtype == torch.bfloat16
        out = kind(8, (4,), 2)(query, features, saliency=saliency)
    assert out.shape == query.shape
