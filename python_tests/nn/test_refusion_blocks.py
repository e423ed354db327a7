"""``DeepStack`` and ``SpatialVisionAggregator``: their rules a token at a time, and the call of ``VisionRemember``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from python_tests._cases import Call
from python_tests._errors import assert_obeys_the_error_rule
from python_tests.nn._refusion_oracle import aggregator, deep_stack
from python_tests.nn._vision_batch import GRID, HIDDEN, WIDTHS, Batch, batch
from vr_kernels import VisionTokenMap, capture_features
from vr_kernels.nn import DeepStack, SpatialVisionAggregator

Build = Callable[..., nn.Module]
SIZES: dict[str, Any] = {"hidden_dim": 8, "num_heads": 2}


def deep(**options: Any) -> DeepStack:
    return DeepStack(HIDDEN, WIDTHS, **{"window": (2, 3), "level": 1, "dtype": torch.float64} | options)


def sva(**options: Any) -> SpatialVisionAggregator:
    return SpatialVisionAggregator(HIDDEN, WIDTHS, **SIZES | {"window": (2, 3), "dtype": torch.float64} | options)


every_block = pytest.mark.parametrize("build", [deep, sva])


def randomised(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def run(block: nn.Module, inputs: Batch) -> Tensor:
    return block(inputs.hidden_states, inputs.vision_map, list(inputs.levels))


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("level", [0, 1])
def test_deep_stack_adds_the_merged_window_of_one_level(level: int, unpad: bool) -> None:
    block, inputs = randomised(deep(level=level)), batch(unpad=unpad)
    expected = deep_stack(block.state_dict(), inputs, level)
    torch.testing.assert_close(run(block, inputs), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize(
    ("options", "feature_grid"),
    [
        ({}, (4, 9)),
        ({"position_on": "key"}, (4, 9)),
        ({"window": None}, (4, 9)),
        ({"window": None}, (5, 8)),  # windows of three and of four columns
        ({"window": (1, 1)}, (2, 3)),
    ],
    ids=str,
)
def test_the_aggregator_is_one_softmax_over_the_windows_of_all_levels(
    options: dict[str, Any], feature_grid: tuple[int, int], unpad: bool
) -> None:
    block, inputs = randomised(sva(**options)), batch(feature_grid, unpad=unpad)
    expected = aggregator(block.state_dict(), inputs, 2, block.position_on)
    torch.testing.assert_close(run(block, inputs), expected, rtol=1e-10, atol=1e-10)


def test_positions_stand_where_a_window_has_more_than_one_feature() -> None:
    assert [tuple(position.shape) for position in sva().positions] == [(6, WIDTHS[0]), (6, WIDTHS[1])]
    assert len(sva(window=(1, 1)).positions) == len(sva(window=None).positions) == 0


def test_deep_stack_is_transformers_qwen3_vl_merger_added() -> None:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

    config = Qwen3VLVisionConfig(hidden_size=WIDTHS[1], spatial_merge_size=2, out_hidden_size=HIDDEN)
    theirs = Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True)
    ours = randomised(DeepStack(HIDDEN, WIDTHS, window=(2, 2), level=1))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    inputs = batch((4, 6)).to(torch.float32)
    level = inputs.levels[1]  # Qwen's patches come window after window
    merged = theirs(level.unflatten(2, (3, 2)).unflatten(1, (2, 2)).transpose(2, 3).reshape(-1, WIDTHS[1]))
    expected = inputs.hidden_states.clone()
    for token in inputs.tokens:
        cell = (token.tile * GRID[0] + token.row) * GRID[1] + token.column
        expected[token.sample, token.slot] += merged[cell]
    torch.testing.assert_close(run(ours, inputs), expected, rtol=1e-5, atol=1e-5)


@every_block
def test_all_rows_but_vision_tokens_pass_bit_for_bit_and_the_stream_is_not_written(build: Build) -> None:
    block, inputs = build(zero_init=False), batch()
    before = inputs.hidden_states.clone()
    out = run(block, inputs)
    assert torch.equal(inputs.hidden_states, before)
    changed = (out != before).any(-1)
    assert torch.equal(changed, inputs.vision_mask)


@every_block
def test_it_starts_as_the_identity_unless_told_otherwise_and_can_learn_from_there(build: Build) -> None:
    block, inputs = build(), batch()
    out = run(block, inputs)
    assert torch.equal(out, inputs.hidden_states)
    out.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())
    assert not torch.equal(run(build(zero_init=False), inputs), inputs.hidden_states)


@every_block
def test_every_parameter_gets_a_gradient_and_the_features_that_are_read(build: Build) -> None:
    block, inputs = build(zero_init=False), batch()
    levels = [level.requires_grad_() for level in inputs.levels]
    stream = inputs.hidden_states.requires_grad_()
    (block(stream, inputs.vision_map, levels) * torch.randn_like(stream)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())
    assert stream.grad is not None
    assert levels[1].grad is not None
    assert levels[1].grad.any()
    assert (levels[0].grad is None) == isinstance(block, DeepStack)


@every_block
@pytest.mark.parametrize("features", [True, False], ids=["an empty table", "None"])
def test_a_batch_without_an_image_is_the_identity_with_gradients_of_zero(build: Build, features: bool) -> None:
    block = build(zero_init=False)
    empty = VisionTokenMap.from_grid(torch.zeros(2, 5, dtype=torch.bool), grid=GRID, feature_grid=(4, 9))
    hidden_states = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    levels = [torch.randn(0, 4, 9, width, dtype=torch.float64) for width in WIDTHS] if features else None
    out = block(hidden_states, empty, levels)
    assert torch.equal(out, hidden_states)
    out.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in block.parameters())


@every_block
def test_levels_may_be_tables_or_tiles_of_any_strides(build: Build) -> None:
    block, inputs = build(zero_init=False), batch()
    expected = run(block, inputs)
    tables = [level.flatten(0, 2) for level in inputs.levels]
    assert torch.equal(block(inputs.hidden_states, inputs.vision_map, tables), expected)
    cut = [torch.cat([level, level], -1)[..., : level.shape[-1]] for level in inputs.levels]
    assert not cut[0].is_contiguous()
    torch.testing.assert_close(block(inputs.hidden_states, inputs.vision_map, cut), expected, rtol=1e-12, atol=1e-12)


@every_block
def test_a_tile_is_read_by_its_own_tokens_alone(build: Build) -> None:
    block, inputs = build(zero_init=False), batch()
    expected = run(block, inputs)
    levels = tuple(level.clone() for level in inputs.levels)
    for level in levels:
        level[1] = torch.nan
    out = run(block, replace(inputs, levels=levels))
    for token in inputs.tokens:
        row = out[token.sample, token.slot]
        assert row.isnan().all() if token.tile == 1 else torch.equal(row, expected[token.sample, token.slot])


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_obeys_the_error_rule(build: Build, dtype: torch.dtype) -> None:
    block, inputs = build(dtype=dtype), batch(unpad=True)
    named = dict(block.named_parameters())

    def draw(seed: int) -> Call:
        generator = torch.Generator().manual_seed(seed)
        other = batch(unpad=True, seed=seed)
        weights = []
        for name, parameter in named.items():
            weight = torch.randn(parameter.shape, generator=generator)
            gain = parameter.dim() == 1 and name.endswith("weight")
            weight = weight * 0.3 + gain if parameter.dim() == 1 else weight * parameter.shape[-1] ** -0.5
            weights.append(weight.to(dtype))
        levels = [level.to(dtype) for level in other.levels]
        return {"hidden_states": other.hidden_states.to(dtype), "levels": levels, "weights": weights}

    def ours(hidden_states: Tensor, levels: list[Tensor], weights: list[Tensor]) -> Tensor:
        state = dict(zip(named, weights, strict=True))
        return functional_call(block, state, (hidden_states, inputs.vision_map, levels))

    def stock(hidden_states: Tensor, levels: list[Tensor], weights: list[Tensor]) -> Tensor:
        state = dict(zip(named, weights, strict=True))
        given = replace(inputs, hidden_states=hidden_states, levels=tuple(levels))
        return deep_stack(state, given, 1) if build is deep else aggregator(state, given, 2, "feature")

    assert_obeys_the_error_rule(ours, stock, stock, draw, norms=("root_mean_square",))


@every_block
def test_it_is_built_on_the_meta_device_and_reset(build: Build) -> None:
    block = build(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(1)
    block.reset_parameters()
    fresh = build()
    torch.manual_seed(1)
    fresh.reset_parameters()
    for (name, parameter), other in zip(block.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, other), name


@every_block
def test_what_it_does_not_read_is_refused(build: Build) -> None:
    inputs = batch()
    for name, value in (("saliency", inputs.saliency), ("text_mask", inputs.text_mask)):
        with pytest.raises(ValueError, match=f"{name} is given, and this block reads none; it must be None"):
            build()(inputs.hidden_states, inputs.vision_map, list(inputs.levels), **{name: value})


@every_block
def test_maps_with_other_windows_or_none_are_refused(build: Build) -> None:
    ragged, inputs = batch((5, 7)), batch()
    with pytest.raises(ValueError, match=re.escape("feature_grid (5, 7) and grid (2, 3); with window (2, 3)")):
        run(build(), ragged)
    with pytest.raises(ValueError, match="feature_grid must be"):
        run(build(window=(2, 2)), inputs)
    without = replace(inputs.vision_map, grid=None, feature_grid=None, cells=None)
    levels = [level.flatten(0, 2) for level in inputs.levels]
    with pytest.raises(ValueError, match="the map has no grid"):
        build()(inputs.hidden_states, without, levels)


@every_block
def test_features_and_streams_that_do_not_fit_are_refused(build: Build) -> None:
    block, inputs = build(), batch()
    with pytest.raises(ValueError, match="features have widths"):
        block(inputs.hidden_states, inputs.vision_map, list(inputs.levels[::-1]))
    with pytest.raises(ValueError, match="features is None, and the map has"):
        block(inputs.hidden_states, inputs.vision_map)
    with pytest.raises(ValueError, match="hidden_states has shape"):
        block(inputs.hidden_states[..., :5], inputs.vision_map, list(inputs.levels))


@pytest.mark.parametrize(
    ("build", "options", "sentence"),
    [
        (deep, {"level": 2}, "level is 2; it must be in [0, 2)"),
        (deep, {"level": -1}, "level is -1; it must be in [0, 2)"),
        (deep, {"window": (0, 1)}, "DeepStack: window is (0, 1); it must be two integers of at least 1"),
        (sva, {"window": 2}, "SpatialVisionAggregator: window is 2; it must be two integers of at least 1"),
        (sva, {"num_heads": 3}, "num_heads must be a positive divisor of hidden_dim"),
        (sva, {"position_on": "value"}, 'it must be "feature" or "key"'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build: Build, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build(**options)


@every_block
def test_it_compiles_without_a_graph_break(build: Build) -> None:
    torch._dynamo.reset()
    block, inputs = build(zero_init=False, dtype=torch.float32), batch().to(torch.float32)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, inputs), run(block, inputs), rtol=1e-5, atol=1e-5)


@every_block
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_it_reads_what_a_tower_leaves_behind(build: Build, family: str) -> None:
    from python_tests.integrations._towers import WIDTH, patches, pixels, tower

    encoder, indices = tower(family), (2, 4)
    with torch.no_grad(), capture_features(encoder, indices) as captured:
        states = encoder(pixels(), output_hidden_states=True).hidden_states
    built = SpatialVisionAggregator if build is sva else DeepStack
    block = built(HIDDEN, (WIDTH, WIDTH), window=(3, 3), zero_init=False)
    mask = torch.tensor([[False, True, False], [True, False, False]])
    vision_map = VisionTokenMap.from_grid(mask, grid=(1, 1), feature_grid=(3, 3))
    hidden_states = torch.randn(2, 3, HIDDEN)
    expected = block(hidden_states, vision_map, [patches(states[index], family) for index in indices])
    out = block(hidden_states, vision_map, captured.features)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal((out != hidden_states).any(-1), mask)
