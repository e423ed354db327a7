"""``TokenFeatureCrossAttention`` against the statement token by token, its forms of features, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from python_tests.nn import _vision_remember_oracle as oracle
from python_tests.nn._vision_batch import HIDDEN, WIDTHS, Batch, batch
from vr_kernels import TokenFeatureCrossAttention, VisionRemember, VisionRememberConfig, VisionTokenMap


def config_of(**options: Any) -> VisionRememberConfig:
    heads: dict[str, Any] = {} if options.get("literal") or "head_dim" in options else {"num_heads": 4}
    fixed: dict[str, Any] = {"hidden_size": HIDDEN, "feature_dims": WIDTHS, "layers": ("cross_attention",)}
    return VisionRememberConfig(**(fixed | heads | options))


def layer_of(config: VisionRememberConfig, dtype: torch.dtype = torch.float64) -> TokenFeatureCrossAttention:
    """No parameter at a value that hides a fault: no zero, no identity."""
    layer = TokenFeatureCrossAttention(config, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer


def run(layer: TokenFeatureCrossAttention, inputs: Batch, hidden_states: Tensor | None = None) -> Tensor:
    saliency = None if layer.config.saliency == "none" else inputs.saliency
    hidden_states = inputs.hidden_states if hidden_states is None else hidden_states
    return layer(hidden_states, inputs.vision_map, inputs.levels, saliency=saliency)


def expected(layer: TokenFeatureCrossAttention, inputs: Batch) -> Tensor:
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    return oracle.cross_attention(state, layer.config, inputs, inputs.hidden_states)


# Everything that the layer reads of its configuration.
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "heads by width": {"head_dim": 2},
    "heads and width": {"num_heads": 3, "head_dim": 5},
    "literal": {"literal": True, "feature_norm": "none"},
    "literal over a norm": {"literal": True, "saliency": "value", "bias": True},
    "literal over one norm": {"literal": True, "feature_norm": "all", "saliency": "feature"},
    "mlp": {"expansion": "mlp"},
    "mlp with bias": {"expansion": "mlp", "bias": True},
    "query LayerNorm": {"query_norm": "layer"},
    "no query norm": {"query_norm": "none"},
    "eps": {"norm_eps": 0.5},
    "eps of LayerNorm": {"query_norm": "layer", "norm_eps": 0.5},
    "norm over all": {"feature_norm": "all"},
    "no feature norm": {"feature_norm": "none"},
    "bias": {"bias": True},
    "position": {"window": (2, 3), "window_position": "learned"},
    "literal position": {"window": (2, 3), "window_position": "learned", "literal": True},
    "saliency": {"saliency": "value"},
    "saliency with bias": {"saliency": "value", "bias": True},
    "saliency on features": {"saliency": "feature", "bias": True},
    "normal": {"residual": "normal"},
    "gate": {"residual": "gate", "bias": True},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@options
@pytest.mark.parametrize("unpad", [False, True])
def test_it_is_the_formula_token_by_token(options: dict[str, Any], unpad: bool) -> None:
    layer, inputs = layer_of(config_of(**options)), batch(unpad=unpad)
    torch.testing.assert_close(run(layer, inputs), expected(layer, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("saliency", ["none", "value"])
@pytest.mark.parametrize("feature_grid", [(5, 7), (2, 2), (1, 1), (4, 8)], ids=str)
def test_ragged_windows_are_those_of_adaptive_pooling(feature_grid: tuple[int, int], saliency: str) -> None:
    layer, inputs = layer_of(config_of(saliency=saliency)), batch(feature_grid)
    torch.testing.assert_close(run(layer, inputs), expected(layer, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unpad", [False, True])
def test_tables_grids_and_strided_views_are_one(unpad: bool) -> None:
    layer, inputs = layer_of(config_of(saliency="value")), batch(unpad=unpad)
    result = run(layer, inputs)
    tables = [level.flatten(0, 2) for level in inputs.levels]
    as_tables = layer(inputs.hidden_states, inputs.vision_map, tables, saliency=inputs.saliency.flatten())
    torch.testing.assert_close(as_tables, result, rtol=1e-12, atol=1e-12)
    encoded = [torch.randn(4, 1 + 4 * 9, width, dtype=torch.float64) for width in WIDTHS]
    for whole, level in zip(encoded, inputs.levels, strict=True):
        whole[:, 1:] = level.flatten(1, 2)
    views = [whole[:, 1:].unflatten(1, (4, 9)) for whole in encoded]  # the CLS row sliced off
    strided = inputs.hidden_states.transpose(0, 1).contiguous().transpose(0, 1)
    as_views = layer(strided, inputs.vision_map, views, saliency=inputs.saliency)
    torch.testing.assert_close(as_views, result, rtol=1e-12, atol=1e-12)


def test_one_level_may_be_one_tensor() -> None:
    layer, inputs = layer_of(config_of(feature_dims=(6,), num_heads=2)), batch()
    level = inputs.levels[0]
    result = layer(inputs.hidden_states, inputs.vision_map, level)
    assert torch.equal(result, layer(inputs.hidden_states, inputs.vision_map, [level]))


def test_windows_of_any_geometry_are_read() -> None:
    # Two tokens without a grid, one of which reads nothing: its update is what the Linears make of zero, so zero.
    layer = layer_of(config_of())
    hidden_states = torch.randn(1, 3, HIDDEN, dtype=torch.float64)
    vision_map = VisionTokenMap(torch.tensor([[2, 0]]), torch.tensor([0]), torch.tensor([[1, 4], [-1, -1]]), (1, 3), 5)
    levels = [torch.randn(5, width, dtype=torch.float64) for width in WIDTHS]
    out = layer(hidden_states, vision_map, levels)
    assert torch.equal(out[0, :2], hidden_states[0, :2])
    others = [level.clone() for level in levels]
    for level in others:
        level[[0, 2, 3]] = torch.nan
    assert torch.equal(layer(hidden_states, vision_map, others), out)
    assert not torch.equal(out[0, 2], hidden_states[0, 2])


@options
def test_folding_changes_the_function_by_rounding_only(options: dict[str, Any]) -> None:
    layer, inputs = layer_of(config_of(**options)), batch()
    result = run(layer, inputs)
    if layer.config.literal:
        with pytest.raises(ValueError, match="fold_: the attention is LiteralLocalAttention; it must be LocalCross"):
            layer.fold_()
        return
    before = sum(parameter.numel() for parameter in layer.parameters())
    assert layer.fold_() is layer
    torch.testing.assert_close(run(layer, inputs), result, rtol=1e-10, atol=1e-10)
    assert sum(parameter.numel() for parameter in layer.parameters()) < before
    assert not any(name.startswith(("contraction", "gate", "expansion.2")) for name in layer.state_dict())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", ["expansion", "contraction", "attention.query_proj"])
def test_an_adapted_linear_is_honoured_and_not_folded(name: str) -> None:
    layer, inputs = layer_of(config_of(residual="gate")), batch()
    parametrize.register_parametrization(layer.get_submodule(name), "weight", Doubled())
    result = run(layer, inputs)
    plain = layer_of(layer.config)
    adapted = {k.replace("parametrizations.weight.original", "weight"): v for k, v in layer.state_dict().items()}
    adapted[f"{name}.weight"] = 2 * adapted[f"{name}.weight"]
    plain.load_state_dict(adapted)
    torch.testing.assert_close(run(plain, inputs), result, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match=rf"{name.split('.')[-1]} is a .*; it must be a plain torch.nn.Linear"):
        layer.fold_()
    assert torch.equal(run(layer, inputs), result)


def test_its_start_is_the_identity_and_learns_at_once() -> None:
    inputs = batch()
    for residual, starts in {"zero": "contraction.weight", "gate": "gate"}.items():
        layer = TokenFeatureCrossAttention(config_of(residual=residual, bias=True), dtype=torch.float64)
        out = run(layer, inputs)
        assert torch.equal(out, inputs.hidden_states)
        out.backward(torch.randn_like(out))
        gradient = layer.get_parameter(starts).grad
        assert gradient is not None
        assert gradient.all()
    assert not torch.equal(run(TokenFeatureCrossAttention(config_of(residual="normal")).double(), inputs), out)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hidden_states has shape (4, 24, 11); it must be (B, T, D) with D = 12": (
        {}, {"hidden_states": torch.zeros(4, 24, 11)}),
    "hidden_states has (B, T) = (4, 1), the map was made for (4, 24)": (
        {}, {"hidden_states": torch.zeros(4, 1, HIDDEN)}),
    "hidden_states is on meta, the map is on cpu": (
        {}, {"hidden_states": torch.zeros(4, 24, HIDDEN, device="meta")}),
    "features is None, and the map has 24 vision tokens": ({}, {"features": None}),
    "features have widths (10, 6), feature_dims is (6, 10)": (
        {}, {"features": [torch.zeros(4, 4, 9, 10), torch.zeros(4, 4, 9, 6)]}),
    "features[1] has leading shape (3, 4, 9); the map was made for (144,) or (4, 4, 9)": (
        {}, {"features": [torch.zeros(4, 4, 9, 6), torch.zeros(3, 4, 9, 10)]}),
    "saliency has leading shape (4, 9, 4); the map was made for (144,) or (4, 4, 9)": (
        {"saliency": "value"}, {"saliency": torch.zeros(4, 9, 4)}),
    "saliency is None, and config.saliency is 'value'; they must agree": ({"saliency": "value"}, {}),
    "saliency is given, and config.saliency is 'none'; they must agree": ({}, {"saliency": torch.zeros(4, 4, 9)}),
    "the map's windows are (2, 3), and config.window is (3, 3)": ({"window": (3, 3)}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("words", "fault"), REFUSALS.items(), ids=REFUSALS.keys())
def test_what_does_not_fit_the_map_or_the_configuration_is_refused(words: str, fault: Any) -> None:
    inputs = batch().to(torch.float32)
    call = {"hidden_states": inputs.hidden_states, "vision_map": inputs.vision_map, "features": inputs.levels}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        TokenFeatureCrossAttention(config_of(**fault[0]))(**(call | fault[1]))
    assert str(caught.value).startswith(f"TokenFeatureCrossAttention: {words}")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("vision_map is None; it must be a VisionTokenMap", {"vision_map": None}),
        ("saliency is a list; it must be a torch.Tensor", {"saliency": [1.0]}),
        ("saliency is a ndarray; it must be a torch.Tensor", {"saliency": torch.zeros(4, 4, 9).numpy()}),
    ],
)
def test_what_is_no_map_or_no_tensor_is_named(words: str, fault: dict[str, Any]) -> None:
    inputs = batch().to(torch.float32)
    call = {"hidden_states": inputs.hidden_states, "vision_map": inputs.vision_map, "features": inputs.levels}
    with pytest.raises(TypeError, match=f"^TokenFeatureCrossAttention: {re.escape(words)}$"):
        TokenFeatureCrossAttention(config_of(saliency="value"))(**(call | {"saliency": inputs.saliency} | fault))


@pytest.mark.parametrize("kind", [TokenFeatureCrossAttention, VisionRemember])
@pytest.mark.parametrize(("config", "got"), [(None, "None"), ({"hidden_size": 12}, "a dict")], ids=["None", "dict"])
def test_what_is_no_configuration_is_named(kind: Callable[[Any], Any], config: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f": config is {got}; it must be a VisionRememberConfig$"):
        kind(config)


@pytest.mark.parametrize(
    "fault", [{"ragged_windows": "reject"}, {"window": (3, 3), "window_position": "learned"}], ids=str
)
def test_ragged_windows_are_refused_where_asked_or_meaningless(fault: dict[str, Any]) -> None:
    inputs = batch((5, 7))
    with pytest.raises(ValueError, match=r"feature_grid \(5, 7\) and grid \(2, 3\), whose windows are ragged"):
        run(layer_of(config_of(**fault)), inputs)
    run(layer_of(config_of(ragged_windows="reject")), batch())


def test_a_map_of_another_image_is_refused_before_it_is_read() -> None:
    inputs = batch()
    other = dataclasses.replace(batch((2, 3)), hidden_states=inputs.hidden_states, levels=inputs.levels)
    with pytest.raises(ValueError, match=r"features\[0\] has leading shape \(4, 4, 9\); the map was made for \(24,\)"):
        run(layer_of(config_of()), other)
