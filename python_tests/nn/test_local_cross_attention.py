"""``LocalCrossAttention``: its function, its parameters, its life as a module, and what ``fold_`` merges."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vr_kernels
from vr_kernels import LocalCrossAttention

WIDTHS = (6, 10)


def inputs(dtype: torch.dtype = torch.float64, width: int = 12) -> tuple[Tensor, list[Tensor]]:
    """(2, 2, 3) tokens and two levels of their 2 x 3 windows."""
    return torch.randn(2, 2, 3, width, dtype=dtype), [torch.randn(2, 4, 9, w, dtype=dtype) for w in WIDTHS]


def randomised(module: LocalCrossAttention) -> LocalCrossAttention:
    """No parameter at a value that hides a fault: zero biases, identity LayerNorms."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def attention(dtype: torch.dtype = torch.float64, **options: Any) -> LocalCrossAttention:
    return randomised(LocalCrossAttention(12, WIDTHS, num_heads=3, dtype=dtype, **options))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "norm over all": {"feature_norm": "all"},
    "norm of each level": {"feature_norm": "level", "bias": True},
    "own head width": {"head_dim": 5},
    "own output width": {"out_dim": 7, "bias": True},
    "saliency on features": {"saliency_on": "feature", "feature_norm": "level", "bias": True},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@options
def test_it_is_the_projections_around_the_operator(options: dict[str, Any]) -> None:
    module, (query, levels) = attention(**options), inputs()
    saliency = torch.rand(2, 4, 9, dtype=torch.float64)
    out, weights = vr_kernels.local_cross_attention(
        nn.functional.linear(query, module.query_proj.weight, module.query_proj.bias),
        levels,
        module.key_weight,
        module.value_weight,
        num_heads=3,
        key_bias=module.key_bias,
        value_bias=module.value_bias,
        norm_weight=module.norm_weight,
        norm_bias=module.norm_bias,
        norm_groups="level" if module.feature_norm == "level" else "all",
        saliency=saliency,
        saliency_on=module.saliency_on,
        return_attention=True,
        backend="reference",
    )
    expected = nn.functional.linear(out, module.out_proj.weight, module.out_proj.bias)
    result, attention_weights = module(query, levels, saliency=saliency, need_weights=True)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention_weights, weights, rtol=1e-12, atol=1e-12)
    assert torch.equal(module(query, levels, saliency=saliency), result)


def test_indexed_and_grid_form_agree() -> None:
    module, (query, levels) = attention(feature_norm="level"), inputs()
    index = vr_kernels.window_index_from_grid(4, 9, 2, 3, batch=2)
    rows = [level.flatten(0, 2) for level in levels]
    indexed = module(query.flatten(0, 2), rows, window_index=index)
    torch.testing.assert_close(indexed.view(2, 2, 3, 12), module(query, levels), rtol=1e-12, atol=1e-12)


def test_one_level_may_be_one_tensor_and_one_width() -> None:
    module = LocalCrossAttention(12, 16, num_heads=2)
    level = torch.randn(2, 4, 9, 16)
    query = torch.randn(2, 2, 3, 12)
    assert module.feature_dims == (16,)
    assert torch.equal(module(query, level), module(query, [level]))


def test_it_starts_with_zero_biases_an_identity_norm_and_bounded_weights() -> None:
    module = LocalCrossAttention(12, WIDTHS, num_heads=3, bias=True, feature_norm="all")
    for name, parameter in module.named_parameters():
        if name == "norm_weight":
            assert (parameter == 1).all()
        elif parameter.dim() == 1:
            assert not parameter.any(), name
        else:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name


@options
def test_all_parameters_get_gradients(options: dict[str, Any]) -> None:
    module, (query, levels) = attention(torch.float32, **options), inputs(torch.float32)
    module(query, levels).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != (name == "key_bias"), name


@options
def test_state_dicts_round_trip_strictly_bit_for_bit(options: dict[str, Any]) -> None:
    module, (query, levels) = attention(**options), inputs()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = attention(**options)
    assert not torch.equal(other(query, levels), module(query, levels))
    other.load_state_dict(torch.load(buffer), strict=True)
    assert torch.equal(other(query, levels), module(query, levels))


def test_state_dict_names_are_stable() -> None:
    names = set(LocalCrossAttention(12, WIDTHS, 3, bias=True, feature_norm="level").state_dict())
    linears = {f"{name}.{kind}" for name in ("query_proj", "out_proj") for kind in ("weight", "bias")}
    assert names == linears | {"key_weight", "value_weight", "key_bias", "value_bias", "norm_weight", "norm_bias"}
    plain = set(LocalCrossAttention(12, WIDTHS, 3).state_dict())
    assert plain == {"query_proj.weight", "out_proj.weight", "key_weight", "value_weight"}


def test_a_deep_copy_is_its_own() -> None:
    module, (query, levels) = attention(bias=True), inputs()
    expected = module(query, levels)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(query, levels), expected)
    with torch.no_grad():
        twin.key_weight.zero_()
    assert torch.equal(module(query, levels), expected)


def test_it_moves_between_dtypes_and_devices() -> None:
    module = LocalCrossAttention(12, WIDTHS, 3, bias=True, feature_norm="all").to(torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    query, levels = inputs(torch.bfloat16)
    assert module(query, levels).dtype == torch.bfloat16
    meta = LocalCrossAttention(12, WIDTHS, 3, device="meta")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    out = meta(query.float().to("meta"), [level.float().to("meta") for level in levels])
    assert (out.device.type, out.shape) == ("meta", (2, 2, 3, 12))


def test_repr_shows_what_was_configured() -> None:
    module = LocalCrossAttention(12, WIDTHS, 3, out_dim=7, bias=True, feature_norm="level", saliency_on="feature")
    expected = "12, (6, 10), num_heads=3, head_dim=4, out_dim=7, bias=True, feature_norm='level'"
    assert expected in repr(module)
    assert "saliency_on='feature'" in repr(module)


def test_it_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    module, (query, levels) = attention(torch.float32, bias=True, feature_norm="level"), inputs(torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, levels), module(query, levels))
    compiled(query, levels).sum().backward()
    assert module.key_weight.grad is not None


def test_autocast_is_a_bfloat16_module() -> None:
    module, (query, levels) = attention(torch.float32, bias=True, feature_norm="level"), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(query, levels)
    assert out.dtype == torch.bfloat16
    expected = module(query, levels)
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    out.sum().backward()
    assert module.value_weight.grad is not None
    assert module.value_weight.grad.dtype == torch.float32


def test_checkpointing_changes_no_gradient() -> None:
    module, (query, levels) = attention(torch.float32, bias=True), inputs(torch.float32)
    module(query, levels).sum().backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    torch.utils.checkpoint.checkpoint(module, query, levels, use_reentrant=False).sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


REFUSALS: dict[str, dict[str, Any]] = {
    "query_dim is 0; it must be at least 1": {"query_dim": 0},
    "num_heads is 0; it must be at least 1": {"num_heads": 0},
    "out_dim is -1; it must be at least 1": {"out_dim": -1},
    "head_dim is 0; it must be at least 1": {"head_dim": 0},
    "feature_dims is (); it must hold one positive width a level": {"feature_dims": ()},
    "feature_dims is (6, 0); it must hold one positive width a level": {"feature_dims": (6, 0)},
    "num_heads is 5, query_dim is 12; give head_dim, or a num_heads that divides query_dim": {"num_heads": 5},
    'feature_norm is \'levels\'; it must be "none", "all" or "level"': {"feature_norm": "levels"},
    'saliency_on is \'values\'; it must be "value" or "feature"': {"saliency_on": "values"},
}


@pytest.mark.parametrize(("words", "fault"), REFUSALS.items())
def test_bad_sizes_are_refused_when_built(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        LocalCrossAttention(**({"query_dim": 12, "feature_dims": WIDTHS, "num_heads": 3} | fault))
    assert str(caught.value) == f"LocalCrossAttention: {words}"


def test_other_levels_than_built_for_are_refused() -> None:
    module, (query, levels) = attention(), inputs()
    with pytest.raises(ValueError, match=r"features have widths \(10, 6\), feature_dims is \(6, 10\)"):
        module(query, levels[::-1])
    with pytest.raises(ValueError, match=r"features have widths \(6,\), feature_dims is \(6, 10\)"):
        module(query, levels[0])
