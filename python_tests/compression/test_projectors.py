"""What holds for every projector: the call, the grid, the windows, the refusals, and Vision Remember behind it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.compression._projectors import HIDDEN, NAMES, SEVERAL, WHOLE, features, projector, widths
from python_tests.integrations._towers import BLOCKS, WIDTH, pixels, tower
from vr_kernels import VisionRemember, VisionRememberConfig, VisionTokenMap, capture_features, window_index_from_grid
from vr_kernels.compression import PROJECTORS, Projected, build_projector

every_name = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("unknown", ["qformer", ["mlp"]])
def test_an_unknown_name_is_refused_with_all_that_are_known(unknown: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"name is {unknown!r}; it must be ")) as error:
        build_projector(unknown, feature_dims=8, hidden_size=8)
    assert all(f'"{name}"' in str(error.value) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "grid"),
    [(name, (4, 6)) for name in NAMES] + [(name, (5, 7)) for name in NAMES if name not in WHOLE],
    ids=str,
)
def test_tokens_stand_for_the_windows_of_adaptive_pooling(name: str, grid: tuple[int, int]) -> None:
    module = projector(name)
    cells, per_cell = module.output_grid(*grid), module.tokens_per_cell
    projected = module(features(name, grid))
    expected = {"mlp": grid, "perceiver": (2, 3)}.get(name, (-(-grid[0] // 2), -(-grid[1] // 2)))
    assert isinstance(projected, Projected)
    assert projected.grid == cells == expected
    assert projected.tokens.shape == (2, cells[0] * cells[1] * per_cell, HIDDEN)
    windows = window_index_from_grid(*grid, *cells)
    assert torch.equal(projected.window_index, torch.stack([row for row in windows for _ in range(per_cell)]))


@every_name
def test_a_projector_without_weights_counts_its_tokens(name: str) -> None:
    module = projector(name, device="meta")
    assert module.output_grid(4, 6) == projector(name)(features(name)).grid


@every_name
def test_a_tile_s_tokens_depend_on_that_tile_alone(name: str) -> None:
    module, levels = projector(name), features(name)
    alone = module([level[1:] for level in levels]).tokens
    poisoned = [level.clone() for level in levels]
    for level in poisoned:
        level[0] = torch.nan
    torch.testing.assert_close(module(poisoned).tokens[1:], alone, rtol=1e-5, atol=1e-6)


@every_name
def test_strides_do_not_matter(name: str) -> None:
    module, levels = projector(name), features(name)
    assert not levels[0].is_contiguous()
    expected = module([level.contiguous() for level in levels]).tokens
    torch.testing.assert_close(module(levels).tokens, expected, rtol=1e-5, atol=1e-6)
    flipped = [level.transpose(1, 2).contiguous().transpose(1, 2) for level in levels]
    torch.testing.assert_close(module(flipped).tokens, expected, rtol=1e-5, atol=1e-6)


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_without_a_tile_gives_every_parameter_a_gradient_of_zero(name: str, dtype: torch.dtype) -> None:
    module = projector(name, dtype=dtype)
    projected = module(features(name, tiles=0, dtype=dtype))
    assert projected.tokens.shape[0] == 0
    assert projected.tokens.dtype == dtype
    projected.tokens.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_parameter_and_every_level_gets_a_gradient(name: str, dtype: torch.dtype) -> None:
    module = projector(name, dtype=dtype)
    levels = [level.requires_grad_() for level in features(name, dtype=dtype)]
    module(levels).tokens.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(level.grad is not None and level.grad.any() for level in levels)


@every_name
def test_a_grid_of_one_feature_is_one_token_or_the_query_grid(name: str) -> None:
    module = projector(name, (1, 1))
    projected = module(features(name, (1, 1)))
    assert projected.tokens.isfinite().all()
    assert set(projected.window_index.flatten().tolist()) == {0}


@pytest.mark.parametrize("name", WHOLE)
def test_windows_that_do_not_divide_the_grid_are_refused_where_the_method_has_no_ragged_ones(name: str) -> None:
    module = projector(name)
    sentence = r"features have grid \(4, 5\); both must be multiples of the window \(2, 2\)"
    with pytest.raises(ValueError, match=sentence):
        module.output_grid(4, 5)
    with pytest.raises(ValueError, match=sentence):
        module(features(name, (4, 5)))


BAD_FEATURES = {
    "another width": (lambda x: [x[..., :3]], "features have widths (3,), feature_dims is (10,)"),
    "no level": (lambda x: [], "features holds 0 levels; it must hold 1"),
    "two levels": (lambda x: [x, x], "features holds 2 levels; it must hold 1"),
    "a table": (lambda x: [x.flatten(0, 2)], "features[0] has shape (48, 10); it must be (tiles, H, W, D)"),
    "no feature": (lambda x: [x[:, :0]], "features have grid (0, 6); both sizes must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_features_that_do_not_fit_are_refused_by_name(case: str) -> None:
    change, sentence = BAD_FEATURES[case]
    with pytest.raises(ValueError, match=re.escape(f"PoolProjector: {sentence}")):
        projector("pool")(change(features("pool")[0]))


def test_levels_of_different_grids_or_kinds_are_refused() -> None:
    module, levels = projector("deformable"), features("deformable")
    with pytest.raises(ValueError, match="all levels must share one grid"):
        module([levels[0], levels[1][:, :2], levels[2]])
    with pytest.raises(TypeError, match=r"features\[1\] is torch.bfloat16"):
        module([levels[0], levels[1].bfloat16(), levels[2]])
    with pytest.raises(TypeError, match=r"features\[2\] is a str; it must be a torch.Tensor"):
        module([*levels[:2], "level"])
    with pytest.raises(TypeError, match=r"features\[0\] is torch.int64"):
        projector("pool")([torch.zeros(1, 4, 4, 10, dtype=torch.int64)])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("pool", {"feature_dims": ()}, "feature_dims is ()"),
        ("pool", {"feature_dims": (8, 8)}, "2 levels; this projector reads one"),
        ("mlp", {"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ("pool", {"window": (2, 0)}, "window is (2, 0); it must be two integers of at least 1"),
        ("pool", {"window": 2}, "window is 2; it must be two integers of at least 1"),
        ("perceiver", {"query_grid": (3,)}, "query_grid is (3,)"),
        ("perceiver", {"hidden_size": 10}, "hidden_size must be a multiple of both 4 and num_heads"),
        ("token_packer", {"num_heads": 3}, "num_heads must be a positive divisor of embed_dim"),
        ("stf", {"window": (2, 3)}, "STF's windows are square"),
        ("stf", {"tokens": 3}, "tokens is 3; it must divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"feature_dims": 8, "hidden_size": 8} | options
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_projector(name, **arguments)


@pytest.mark.parametrize(
    ("name", "levels"),
    [(name, (23,)) for name in NAMES if name not in SEVERAL]
    + [
        ("token_packer", (12, 16, 22, 23)),
        ("deformable", (23,)),
        ("stf", (3, 6, 9, 12, 15, 18, 21, 24)),
    ],
)
def test_default_levels_are_the_papers_of_a_tower_of_24_blocks(name: str, levels: tuple[int, ...]) -> None:
    assert PROJECTORS[name].default_levels(24) == levels


@every_name
def test_default_levels_exist_once_each_in_towers_of_any_depth(name: str) -> None:
    for depth in range(1, 50):
        levels = PROJECTORS[name].default_levels(depth)
        assert len(set(levels)) == len(levels) > 0
        assert all(0 <= level <= depth for level in levels)


@every_name
def test_shapes_are_known_on_the_meta_device(name: str) -> None:
    projected = projector(name, device="meta")([level.to("meta") for level in features(name)])
    expected = projector(name)(features(name))
    assert projected.tokens.shape == expected.tokens.shape
    assert projected.window_index.device.type == "meta"


@every_name
def test_evaluation_without_gradients_gives_the_tokens_of_training(name: str) -> None:
    module, levels = projector(name), features(name)
    expected = module(levels).tokens
    module.eval()
    with torch.inference_mode():
        tokens = module(levels).tokens
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)


@every_name
def test_it_is_saved_and_loaded_bit_for_bit(name: str) -> None:
    module, other, levels = projector(name), projector(name), features(name)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file), strict=True)
    assert torch.equal(other(levels).tokens, module(levels).tokens)


@every_name
def test_it_is_built_on_the_meta_device_and_starts_there_as_anywhere(name: str) -> None:
    built = projector(name, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(1)
    built.reset_parameters()
    fresh = projector(name)
    torch.manual_seed(1)
    fresh.reset_parameters()
    for (parameter_name, parameter), other in zip(built.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, other), parameter_name


@every_name
def test_a_reset_draws_from_the_distribution_that_it_was_built_from(name: str) -> None:
    built, reset = (build_projector(name, feature_dims=(64,) * len(widths(name)), hidden_size=64) for _ in range(2))
    with torch.no_grad():
        for parameter in reset.parameters():
            parameter.fill_(7)
    reset.reset_parameters()
    for (parameter_name, one), (_, other) in zip(built.state_dict().items(), reset.state_dict().items(), strict=True):
        allowed = 8 * float(one.std()) * one.numel() ** -0.5
        assert abs(float(one.std() - other.std())) <= allowed, parameter_name
        assert abs(float(one.mean() - other.mean())) <= allowed, parameter_name


@pytest.mark.parametrize("name", ["pool", "token_packer"])
def test_it_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    module, levels = projector(name), features(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(levels)
    expected = module(levels)
    torch.testing.assert_close(compiled.tokens, expected.tokens, rtol=1e-5, atol=1e-6)
    assert compiled.grid == expected.grid
    assert torch.equal(compiled.window_index, expected.window_index)


def vision_remember(feature_dims: tuple[int, ...]) -> VisionRemember:
    config = VisionRememberConfig(
        hidden_size=HIDDEN, num_attention_heads=2, feature_dims=feature_dims, num_heads=2, residual="normal"
    )
    return VisionRemember(config)


def map_of(projected: Projected, feature_grid: tuple[int, int]) -> VisionTokenMap:
    """The tokens of each tile as one image of one sample, after a text token, each with the windows that it names."""
    tiles, tokens = projected.tokens.shape[:2]
    length, features_of_tile = tokens + 1, feature_grid[0] * feature_grid[1]
    window = projected.window_index
    return VisionTokenMap(
        token_rows=torch.arange(tiles)[:, None] * length + torch.arange(1, length),
        image_sample=torch.arange(tiles),
        window_index=torch.cat([window.where(window < 0, window + i * features_of_tile) for i in range(tiles)]),
        sequence_shape=(tiles, length),
        feature_rows=tiles * features_of_tile,
    )


@every_name
def test_its_tokens_go_through_vision_remember_with_the_windows_that_it_names(name: str) -> None:
    module, levels = projector(name), features(name)
    projected, block = module(levels), vision_remember(widths(name))
    hidden_states = torch.cat([torch.randn(2, 1, HIDDEN), projected.tokens], 1)
    vision_map = map_of(projected, (4, 6))
    out = block(hidden_states, vision_map, [level.flatten(0, 2) for level in levels])
    assert torch.equal(out[:, 0], hidden_states[:, 0])
    assert (out[:, 1:] != hidden_states[:, 1:]).any(-1).all()
    if module.tokens_per_cell == 1:
        mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool)
        mask[:, 0] = False
        by_grid = VisionTokenMap.from_grid(mask, grid=projected.grid, feature_grid=(4, 6))
        assert torch.equal(by_grid.window_index, vision_map.window_index)
        torch.testing.assert_close(block(hidden_states, by_grid, levels), out, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@every_name
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_it_reads_what_a_tower_leaves_behind(name: str, family: str) -> None:
    encoder: nn.Module = tower(family)
    levels = PROJECTORS[name].default_levels(BLOCKS)
    options = {} if name in ("mlp", "perceiver", "pool", "ldpv2") else {"window": (3, 3)}
    module = build_projector(name, feature_dims=(WIDTH,) * len(levels), hidden_size=HIDDEN, **options)
    with torch.no_grad(), capture_features(encoder, levels) as captured:
        states: tuple[Tensor, ...] = encoder(pixels(), output_hidden_states=True).hidden_states
    tokens = module(captured.features).tokens
    skipped = 1 if family == "clip" else 0
    expected = module([states[level][:, skipped:].unflatten(1, (3, 3)) for level in levels]).tokens
    assert tokens.isfinite().all()
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)
