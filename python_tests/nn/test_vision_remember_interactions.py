"""The ablations' interactions inside the layer: every token reads its whole tile, or points of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.nn._vision_batch import GRID, HIDDEN, WIDTHS, Batch, batch
from python_tests.nn.test_token_feature_cross_attention import config_of, expected, layer_of, run
from vr_kernels import TokenFeatureCrossAttention, VisionTokenMap

interactions = pytest.mark.parametrize("interaction", ["global", "deformable"])
unpadded = pytest.mark.parametrize("unpad", [False, True])
grids = pytest.mark.parametrize("feature_grid", [(4, 9), (5, 7)], ids=str)


@pytest.mark.parametrize(
    "options",
    [{}, {"saliency": "value", "bias": True}, {"saliency": "feature", "feature_norm": "all"}, {"feature_norm": "none"}],
    ids=str,
)
@unpadded
@grids
def test_global_attention_is_the_formula_token_by_token(
    options: dict[str, Any], unpad: bool, feature_grid: tuple[int, int]
) -> None:
    layer = layer_of(config_of(interaction="global", **options))
    inputs = batch(feature_grid, unpad=unpad)
    torch.testing.assert_close(run(layer, inputs), expected(layer, inputs), rtol=1e-10, atol=1e-10)


def tile_by_tile(layer: TokenFeatureCrossAttention, inputs: Batch) -> Tensor:
    """The layer's own attention over one tile at a time, its tokens set into the grid by hand."""
    out = inputs.hidden_states.clone()
    for tile in range(4):
        query = torch.randn(1, *GRID, sum(WIDTHS), dtype=out.dtype)  # what stands in a removed cell does not matter
        tokens = [token for token in inputs.tokens if token.tile == tile]
        for token in tokens:
            x = inputs.hidden_states[token.sample, token.slot]
            query[0, token.row, token.column] = layer.expansion(layer.query_norm(x))
        levels = [level[tile : tile + 1] for level in inputs.levels]
        attended = layer.attention(query, levels, saliency=inputs.saliency[tile : tile + 1])
        for token in tokens:
            out[token.sample, token.slot] += layer.contraction(attended[0, token.row, token.column])
    return out


@interactions
@unpadded
@grids
def test_every_tile_is_alone(interaction: str, unpad: bool, feature_grid: tuple[int, int]) -> None:
    layer = layer_of(config_of(interaction=interaction, saliency="value"))
    inputs = batch(feature_grid, unpad=unpad)
    with torch.no_grad():
        torch.testing.assert_close(run(layer, inputs), tile_by_tile(layer, inputs), rtol=1e-10, atol=1e-10)


@interactions
def test_a_batch_without_an_image_touches_every_parameter(interaction: str) -> None:
    layer = layer_of(config_of(interaction=interaction), torch.float32)
    vision_map = VisionTokenMap.from_grid(torch.zeros(2, 5, dtype=torch.bool), grid=GRID, feature_grid=(4, 9))
    hidden_states = torch.randn(2, 5, HIDDEN)
    out = layer(hidden_states, vision_map, None)
    assert torch.equal(out, hidden_states)
    out.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@interactions
def test_it_compiles_to_one_graph(interaction: str) -> None:
    torch.compiler.reset()
    layer, inputs = layer_of(config_of(interaction=interaction), torch.float32), batch(unpad=True).to(torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(inputs.hidden_states, inputs.vision_map, inputs.levels)
    torch.testing.assert_close(out, run(layer, inputs))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@interactions
def test_a_map_without_a_grid_and_folding_are_refused(interaction: str) -> None:
    layer = layer_of(config_of(interaction=interaction))
    vision_map = VisionTokenMap(torch.tensor([[2]]), torch.tensor([0]), torch.tensor([[1, 4]]), (1, 3), 5)
    levels = [torch.randn(5, width, dtype=torch.float64) for width in WIDTHS]
    with pytest.raises(ValueError, match=f"the map has no grid, and config.interaction is '{interaction}'"):
        layer(torch.randn(1, 3, HIDDEN, dtype=torch.float64), vision_map, levels)
    with pytest.raises(ValueError, match=r"fold_: the attention is .*; it must be LocalCrossAttention"):
        layer.fold_()
