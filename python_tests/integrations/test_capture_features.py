"""``capture_features`` on CLIP and SigLIP towers gives transformers' own hidden states and what its eager maps say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.integrations._towers import BLOCKS, MODELS, Adapted, llava, patches, pixels, tower
from vr_kernels import capture_features, cls_saliency

families = pytest.mark.parametrize("family", MODELS)


def hidden_states(model: Any, images: Tensor, **options: Any) -> tuple[Tensor, ...]:
    states: tuple[Tensor, ...] = model(images, output_hidden_states=True, **options).hidden_states
    return states


def eager_maps(family: str, images: Tensor) -> tuple[Tensor, ...]:
    maps: tuple[Tensor, ...] = tower(family, attention="eager")(images, output_attentions=True).attentions
    return maps


@families
@pytest.mark.parametrize("levels", [(0,), (2, 4), (5, 1, 3), (-1, -3, 0), tuple(range(BLOCKS + 1))], ids=str)
def test_features_are_the_hidden_states_of_the_patches(family: str, levels: tuple[int, ...]) -> None:
    model, images = tower(family), pixels()
    with torch.no_grad():
        states = hidden_states(model, images)
        with capture_features(model, levels) as captured:
            model(images)
    assert captured.levels == tuple(level % (BLOCKS + 1) for level in levels)
    for feature, level in zip(captured.features, levels, strict=True):
        assert torch.equal(feature, patches(states[level], family))


@families
def test_one_level_may_be_a_number(family: str) -> None:
    model, images = tower(family), pixels()
    with torch.no_grad(), capture_features(model, -2) as captured:
        model(images)
        expected = hidden_states(model, images)[-2]
    (feature,) = captured.features
    assert torch.equal(feature, patches(expected, family))


@families
def test_the_grid_is_that_of_the_image_also_where_it_is_not_square(family: str) -> None:
    model, images = tower(family), pixels(height=16, width=40)
    with torch.no_grad(), capture_features(model, 2) as captured:
        states = hidden_states(model, images, interpolate_pos_encoding=True)
    assert torch.equal(captured.features[0], patches(states[2], family, 2, 5))


@families
def test_cutting_the_cls_row_off_copies_nothing(family: str) -> None:
    model = tower(family)
    outputs: list[Tensor] = []
    model.encoder.layers[1].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad(), capture_features(model, 2) as captured:
        model(pixels())
    assert captured.features[0].untyped_storage().data_ptr() == outputs[0].untyped_storage().data_ptr()


def test_cls_saliency_is_the_sigmoid_of_the_mean_logit_of_the_block_that_makes_the_deepest_level() -> None:
    model, images = tower("clip"), pixels()
    with torch.no_grad():
        block = model.encoder.layers[3]
        rows = block.layer_norm1(hidden_states(model, images)[3])
        query, key = (projection(rows).unflatten(-1, (2, 8)) for projection in _projections(block))
        logits = torch.einsum("bhd,bnhd->bhn", query[:, 0], key) / 8**0.5
        with capture_features(model, (4, 2), saliency="cls") as captured:
            model(images)
    assert captured.saliency_level == 4
    expected = logits.mean(1).sigmoid()[:, 1:].view(2, 3, 3)
    assert expected.std() > 0.01
    torch.testing.assert_close(captured.saliency, expected, rtol=1e-5, atol=1e-6)


def _projections(block: Any) -> tuple[nn.Module, nn.Module]:
    return block.self_attn.q_proj, block.self_attn.k_proj


@pytest.mark.parametrize("level", [1, 3, -1])
def test_cls_probabilities_are_those_of_the_eager_maps(level: int) -> None:
    images = pixels()

    def probabilities(query: Tensor, key: Tensor) -> Tensor:
        return (torch.einsum("bhd,bnhd->bhn", query[:, 0], key) / 8**0.5).softmax(-1).mean(1)

    with torch.no_grad():
        expected = eager_maps("clip", images)[level % (BLOCKS + 1) - 1].mean(1)[:, 0, 1:]
        model = tower("clip")
        with capture_features(model, 0, saliency=probabilities, saliency_level=level) as captured:
            model(images)
    torch.testing.assert_close(captured.saliency, expected.view(2, 3, 3), rtol=1e-5, atol=1e-6)


def test_cls_probabilities_of_the_operator_are_those_of_the_eager_maps() -> None:
    images, model = pixels(), tower("clip")
    with torch.no_grad():
        expected = eager_maps("clip", images)[1].mean(1)[:, 0, 1:].view(2, 3, 3)
        with capture_features(
            model, 2, saliency=lambda query, key: cls_saliency(query[:, 0], key, source="probs")
        ) as captured:
            model(images)
    torch.testing.assert_close(captured.saliency, expected.sigmoid(), rtol=1e-5, atol=1e-6)


@families
def test_attention_received_is_the_column_mean_of_the_eager_maps(family: str) -> None:
    images, model = pixels(), tower(family)
    with torch.no_grad():
        expected = eager_maps(family, images)[3].mean((1, 2))
        with capture_features(model, (2, 4), saliency="received") as captured:
            model(images)
    expected = (expected[:, 1:] if family == "clip" else expected).view(2, 3, 3)
    assert expected.std() > 0.01
    torch.testing.assert_close(captured.saliency, expected, rtol=1e-5, atol=1e-6)


@families
def test_no_layer_falls_back_to_eager_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower(family)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("eager attention ran")

    monkeypatch.setattr(f"transformers.models.{family}.modeling_{family}.eager_attention_forward", refuse)
    with torch.no_grad(), capture_features(model, (2, 4), saliency="received"):
        model(pixels())
        model.set_attn_implementation("eager")
        with pytest.raises(AssertionError, match="eager attention ran"):
            model(pixels())


def test_an_adapted_projection_is_used_as_it_presents_itself() -> None:
    model, images = tower("clip"), pixels()
    attention = model.encoder.layers[1].self_attn
    attention.k_proj = Adapted(attention.k_proj)
    seen: list[Tensor] = []

    def saliency(query: Tensor, key: Tensor) -> Tensor:
        seen.append(key)
        return key[..., 0, 0]

    with torch.no_grad(), capture_features(model, 2, saliency=saliency):
        model(images)
        rows = model.encoder.layers[1].layer_norm1(hidden_states(model, images)[1])
    assert torch.equal(seen[0], attention.k_proj(rows).unflatten(-1, (2, 8)))


@families
def test_it_works_inside_llava(family: str) -> None:
    model, images = llava(family), pixels(batch=3)[None]
    with torch.no_grad():
        with capture_features(model, (1, 4), saliency="received") as captured:
            model.get_image_features(images, image_sizes=torch.tensor([[24, 48]]))
        states = hidden_states(model.model.vision_tower, images[0])
    for feature, level in zip(captured.features, (1, 4), strict=True):
        assert torch.equal(feature, patches(states[level], family))
    assert captured.saliency is not None
    assert captured.saliency.shape == (3, 3, 3)


@families
def test_joint_levels_are_their_concatenation_and_the_features_are_views_of_it(family: str) -> None:
    model, images = tower(family), pixels()
    with torch.no_grad(), capture_features(model, (4, 1), joint=True) as captured:
        states = hidden_states(model, images)
    expected = [patches(states[level], family) for level in (4, 1)]
    assert torch.equal(captured.joint, torch.cat(expected, -1))
    assert captured.joint.is_contiguous()
    for feature, level in zip(captured.features, expected, strict=True):
        assert torch.equal(feature, level)
        assert feature.untyped_storage().data_ptr() == captured.joint.untyped_storage().data_ptr()


def checkpointed(model: Any, *, use_reentrant: bool) -> Any:
    """Training, with every block recomputed in the backward pass. The method has another name in newer transformers."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    return model.train()


def gradients(model: Any, run: Callable[[], list[Tensor]]) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = run()
    cotangents = torch.Generator().manual_seed(2)
    torch.autograd.backward(outputs, [torch.randn(out.shape, generator=cotangents).to(out) for out in outputs])
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@families
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trained_tower_gets_the_gradients_of_its_hidden_states(family: str, joint: bool, checkpointing: bool) -> None:
    model, images, levels = tower(family).double(), pixels().double(), (0, 2, 4)
    expected = gradients(model, lambda: [patches(hidden_states(model, images)[k], family) for k in levels])
    if checkpointing:
        checkpointed(model, use_reentrant=False)

    def run() -> list[Tensor]:
        with capture_features(model, levels, joint=joint) as captured:
            model(images)
        return list(captured.features)

    results = gradients(model, run)
    assert set(results) == set(expected)
    for name, gradient in results.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_saliency_is_differentiable(checkpointing: bool) -> None:
    model, images = tower("clip").double(), pixels().double()

    def maps() -> list[Tensor]:
        block = model.encoder.layers[2]
        rows = block.layer_norm1(hidden_states(model, images)[2])
        query, key = (projection(rows).unflatten(-1, (2, 8)) for projection in _projections(block))
        return [torch.einsum("bhd,bnhd->bhn", query[:, 0], key).div(8**0.5).mean(1).sigmoid()[:, 1:].view(2, 3, 3)]

    expected = gradients(model, maps)
    if checkpointing:
        checkpointed(model, use_reentrant=False)

    def run() -> list[Tensor]:
        with capture_features(model, 3, saliency="cls") as captured:
            model(images)
        assert captured.saliency is not None
        return [captured.saliency]

    results = gradients(model, run)
    assert set(results) == set(expected)
    for name, gradient in results.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


def test_backward_inside_the_context_does_not_capture_again() -> None:
    model, images = checkpointed(tower("clip"), use_reentrant=False), pixels()
    with capture_features(model, (2, 4)) as captured:
        model(images)
        before = captured.features
        before[1].sum().backward()
        assert all(one is other for one, other in zip(captured.features, before, strict=True))


@pytest.mark.parametrize("saliency", [None, "cls"])
def test_reentrant_checkpointing_of_a_trained_tower_is_refused_where_it_would_cut_gradients(
    saliency: str | None,
) -> None:
    model, images = checkpointed(tower("clip"), use_reentrant=True), pixels().requires_grad_()
    with capture_features(model, 3, saliency=saliency) as captured:
        if saliency is None and hasattr(
            model, "activation_checkpointing_enable"
        ):  # its hooks stand outside checkpoints
            model(images)
            assert captured.features[0].requires_grad
            return
        with pytest.raises(RuntimeError, match="reentrant gradient checkpointing"):
            model(images)
        model.requires_grad_(False)
        model(images)
        assert (captured.saliency is None) == (saliency is None)


@families
def test_states_keep_the_cls_row(family: str) -> None:
    model, images = tower(family), pixels()
    with torch.no_grad(), capture_features(model, (4, 2)) as captured:
        expected = hidden_states(model, images)
    assert all(torch.equal(state, expected[level]) for state, level in zip(captured.states, (4, 2), strict=True))
    with torch.no_grad(), capture_features(model, (4, 2), joint=True) as captured:
        model(images)
    with pytest.raises(RuntimeError, match="captured side by side, without CLS rows"):
        _ = captured.states


def test_received_saliency_is_one_over_the_number_of_patches_on_average() -> None:
    """And no sigmoid about a half: docs/methods.md tells."""
    model = tower("siglip")
    with torch.no_grad(), capture_features(model, 3, saliency="received") as captured:
        model(pixels())
    assert captured.saliency is not None
    torch.testing.assert_close(captured.saliency.mean((1, 2)), torch.full((2,), 1 / 9))
