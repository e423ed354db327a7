"""``DeformableCrossAttention``: transformers' module with the same parameters, the start that the paper gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vr_kernels import DeformableCrossAttention

WIDTHS = (6, 10)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    """2 x 4 tokens in each of three tiles of 3 x 5 features."""
    return torch.randn(3, 2, 4, 12, dtype=dtype), [torch.randn(3, 3, 5, w, dtype=dtype) for w in WIDTHS]


def randomised(module: DeformableCrossAttention) -> DeformableCrossAttention:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def attention(dtype: torch.dtype = torch.float64, **options: Any) -> DeformableCrossAttention:
    return randomised(DeformableCrossAttention(12, WIDTHS, 3, dtype=dtype, **options))


def test_it_is_transformers_module_with_the_same_parameters() -> None:
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    config = DeformableDetrConfig(
        d_model=16, num_feature_levels=2, use_timm_backbone=False, backbone_config=None, disable_custom_kernels=True
    )
    theirs: Any = DeformableDetrMultiscaleDeformableAttention(config, num_heads=2, n_points=3).double()
    ours = randomised(DeformableCrossAttention(16, (16, 16), 2, num_points=3, bias=True, dtype=torch.float64))
    for mine, their in (
        (ours.sampling_offsets, theirs.sampling_offsets),
        (ours.attention_weights, theirs.attention_weights),
        (ours.out_proj, theirs.output_proj),
    ):
        their.load_state_dict(mine.state_dict())
    for projection in ours.value_projs:  # theirs is one for all levels
        projection.load_state_dict(ours.value_projs[0].state_dict())
    theirs.value_proj.load_state_dict(ours.value_projs[0].state_dict())

    query, sizes = torch.randn(2, 3, 2, 16, dtype=torch.float64), [(4, 6), (3, 5)]
    levels = [torch.randn(2, *size, 16, dtype=torch.float64) for size in sizes]
    centres = torch.tensor([[(j + 0.5) / 2, (i + 0.5) / 3] for i in range(3) for j in range(2)], dtype=torch.float64)
    expected, expected_weights = theirs(
        query.flatten(1, 2),
        encoder_hidden_states=torch.cat([level.flatten(1, 2) for level in levels], 1),
        reference_points=centres[None, :, None].expand(2, 6, 2, 2),
        spatial_shapes=torch.tensor(sizes),
        spatial_shapes_list=sizes,
    )
    torch.testing.assert_close(ours(query, levels).flatten(1, 2), expected, rtol=1e-11, atol=1e-11)
    _, weights = ours.sample_points(query, sizes)
    torch.testing.assert_close(weights.flatten(1, 2), expected_weights, rtol=1e-12, atol=1e-12)


def test_it_starts_with_eight_directions_one_to_four_features_from_the_window_s_centre_and_equal_weights() -> None:
    module = DeformableCrossAttention(16, (16, 8))
    locations, weights = module.sample_points(torch.randn(1, 2, 3, 16), [(12, 12), (6, 24)])
    assert weights.shape == (1, 2, 3, 8, 2, 4)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 8))
    centre = torch.tensor([2.5 / 3, 0.5 / 2])  # of token (0, 2): x, y
    for level, (height, width) in enumerate([(12, 12), (6, 24)]):
        steps = (locations[0, 0, 2, :, level] - centre) * torch.tensor([width, height])  # (h, P, 2), in features
        directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
        expected = torch.tensor(directions)[:, None] * torch.arange(1, 5)[:, None]
        torch.testing.assert_close(steps, expected.float(), rtol=0, atol=2e-5)


def test_a_reset_starts_it_anew() -> None:
    module = attention(torch.float32, feature_norm="level", bias=True)
    fresh = DeformableCrossAttention(12, WIDTHS, 3, feature_norm="level", bias=True)
    module.reset_parameters()
    for (name, one), (_, other) in zip(module.named_parameters(), fresh.named_parameters(), strict=True):
        if one.dim() == 1 or "sampling_offsets" in name or "attention_weights" in name:
            assert torch.equal(one, other), name
        else:
            assert 0 < one.abs().max() <= (6 / sum(one.shape)) ** 0.5, name


@pytest.mark.parametrize("where", ["value", "feature"])
def test_saliency_multiplies_values_without_renormalisation(where: str) -> None:
    module, (query, levels) = attention(bias=True, feature_norm="level", saliency_on=where), inputs()
    saliency = torch.rand(3, 3, 5, dtype=torch.float64)
    values = []
    for norm, projection, level in zip(module.feature_norms, module.value_projs, levels, strict=True):
        sigma, feature = saliency[..., None], norm(level)
        values.append(projection(feature) * sigma if where == "value" else projection(feature * sigma))
    plain = DeformableCrossAttention(12, (12, 12), 3, bias=True, dtype=torch.float64)
    for name in ("sampling_offsets", "attention_weights", "out_proj"):
        getattr(plain, name).load_state_dict(getattr(module, name).state_dict())
    for projection in plain.value_projs:
        nn.init.eye_(projection.weight)
    expected = plain(query, values)
    torch.testing.assert_close(module(query, levels, saliency=saliency), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(module(query, levels), expected)


@pytest.mark.parametrize("options", [{}, {"bias": True, "feature_norm": "level"}])
def test_all_parameters_and_the_query_get_gradients(options: dict[str, Any]) -> None:
    module, (query, levels) = attention(torch.float32, **options), inputs(torch.float32)
    module(query.requires_grad_(), levels).square().sum().backward()
    assert query.grad is not None
    assert query.grad.any()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_bfloat16_places_points_in_float32() -> None:
    module = DeformableCrossAttention(16, 16, dtype=torch.bfloat16)
    locations, weights = module.sample_points(torch.randn(1, 24, 24, 16, dtype=torch.bfloat16), [(24, 24)])
    assert (locations.dtype, weights.dtype) == (torch.float32, torch.float32)
    features = locations * 24 - 0.5  # whole numbers: windows of one feature, offsets of whole features
    assert (features - features.round()).abs().max() < 1e-4
    query, level = torch.randn(1, 2, 2, 16).bfloat16(), torch.randn(1, 4, 4, 16).bfloat16()
    assert module(query, level).dtype == torch.bfloat16


def test_autocast_computes_in_bfloat16_and_keeps_the_places() -> None:
    module, (query, levels) = attention(torch.float32, feature_norm="level"), inputs(torch.float32)
    expected = module(query, levels)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(query, levels)
        assert module.sample_points(query, [(3, 5), (3, 5)])[0].dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


def test_it_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    module, (query, levels) = attention(torch.float32, feature_norm="level"), inputs(torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, levels), module(query, levels))
    compiled(query, levels).sum().backward()


def test_repr_shows_what_was_configured() -> None:
    expected = "12, (6, 10), num_heads=3, head_dim=4, num_points=2, out_dim=7, bias=False, feature_norm='level'"
    assert expected in repr(DeformableCrossAttention(12, WIDTHS, 3, num_points=2, out_dim=7, feature_norm="level"))


CALLS: dict[str, dict[str, Any]] = {
    "window_index is given": {"window_index": torch.zeros(8, 2, dtype=torch.int64)},
    "need_weights is True, and the weights belong to points": {"need_weights": True},
    "features have widths (10, 6), feature_dims is (6, 10)": {"features": [torch.zeros(3, 3, 5, w) for w in (10, 6)]},
    "features[1] has grid (5, 3), features[0] has (3, 5); all levels must share one grid": {
        "features": [torch.zeros(3, 3, 5, 6), torch.zeros(3, 5, 3, 10)],
        "saliency": torch.zeros(3, 3, 5),
    },
}
BUILDS: dict[str, dict[str, Any]] = {
    'feature_norm is "all", and the levels are not concatenated here; it must be "none" or "level"': {
        "feature_norm": "all"
    },
    "num_points is 0; it must be at least 1": {"num_points": 0},
    "num_heads is 5, query_dim is 12": {"num_heads": 5},
}


@pytest.mark.parametrize(("words", "fault"), CALLS.items(), ids=range(len(CALLS)))
def test_bad_calls_are_refused_in_words(words: str, fault: dict[str, Any]) -> None:
    query, levels = inputs(torch.float32)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        attention(torch.float32)(**({"query": query, "features": levels} | fault))
    assert str(caught.value).startswith(f"DeformableCrossAttention: {words}")


@pytest.mark.parametrize(("words", "fault"), BUILDS.items(), ids=range(len(BUILDS)))
def test_bad_sizes_are_refused_when_built(words: str, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words follow
        DeformableCrossAttention(**({"query_dim": 12, "feature_dims": WIDTHS, "num_heads": 3} | fault))
    assert str(caught.value).startswith(f"DeformableCrossAttention: {words}")


def test_it_starts_the_same_whatever_the_default_device() -> None:
    expected = DeformableCrossAttention(12, WIDTHS, 3).sampling_offsets.bias
    with torch.device("meta"):
        module = DeformableCrossAttention(12, WIDTHS, 3, device="cpu")
        assert DeformableCrossAttention(12, WIDTHS, 3).sampling_offsets.bias.is_meta
    assert torch.equal(module.sampling_offsets.bias, expected)
