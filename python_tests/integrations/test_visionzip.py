"""``VisionZip`` around random CLIP and SigLIP towers, against the rule on transformers' eager attention maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.compression._visionzip import of_tower
from python_tests.integrations._towers import BLOCKS, MODELS, WIDTH, Adapted, llava, pixels, tower
from vr_kernels import VisionZip
from vr_kernels.compression import ZippedTokens

families = pytest.mark.parametrize("family", MODELS)
BUDGETS = [(1, 1), (4, 3), (2, 0), (9, 0), (5, 4), (1, 8)]  # of the 9 patches of SigLIP, CLIP's CLS row aside


def check(family: str, zipped: ZippedTokens, images: Tensor, *budget: int, **options: Any) -> None:
    """The same choice, and the same tokens but for the order of sums in SDPA."""
    expected = of_tower(tower(family, attention="eager").double(), images.double(), *budget, **options)
    assert zipped.dominant.tolist() == [image.dominant for image in expected]
    assert zipped.targets.tolist() == [image.targets for image in expected]
    assert zipped.assignment.tolist() == [image.assignment for image in expected]
    tokens = torch.stack([image.tokens for image in expected])
    torch.testing.assert_close(zipped.tokens.double(), tokens, atol=1e-4, rtol=1e-4)


@families
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_it_is_the_rule_on_eager_maps(family: str, budget: tuple[int, int], merge: str) -> None:
    images = pixels(3)
    with torch.no_grad():
        zipped = VisionZip(tower(family), *budget, merge=merge)(images)
        check(family, zipped, images, *budget, kind=merge)


@families
@pytest.mark.parametrize("level", [1, 3, -1, -2])
def test_scores_and_metric_are_of_the_block_that_makes_the_level(family: str, level: int) -> None:
    with torch.no_grad():
        check(family, VisionZip(tower(family), 4, 2, level=level)(pixels()), pixels(), 4, 2, level=level)


@families
@pytest.mark.parametrize("size", [(8, 8), (8, 40), (56, 24)], ids=str)
def test_odd_grids_are_zipped(family: str, size: tuple[int, int]) -> None:
    images, budget = pixels(2, *size), (1, 0) if size == (8, 8) else (3, 2)
    with torch.no_grad():
        zipped = VisionZip(tower(family), *budget)(images, interpolate_pos_encoding=True)
        check(family, zipped, images, *budget, interpolate_pos_encoding=True)


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_chooses_by_its_own_queries_and_keys(family: str, dtype: torch.dtype) -> None:
    """The kept rows are rows of the tower's own hidden state, and most choices are those of float64."""
    model, images = tower(family).to(dtype), pixels(16).to(dtype)
    with torch.no_grad():
        zipped = VisionZip(model, 4, 2)(images)
        states = model(images, output_hidden_states=True).hidden_states[-2]
        exact = of_tower(tower(family, attention="eager").double(), images.double(), 4, 2)
    first = int(family == "clip")
    for b in range(16):
        kept = [*range(first), *(zipped.dominant[b] + first).tolist()]
        assert torch.equal(zipped.tokens[b, :4], states[b, kept])
    agreeing = [zipped.dominant[b].tolist() == exact[b].dominant for b in range(16)]
    assert sum(agreeing) >= 12


@families
def test_a_batch_is_zipped_as_its_images_are(family: str) -> None:
    zipper, images = VisionZip(tower(family), 4, 2), pixels(5)
    with torch.no_grad():
        together = zipper(images)
        alone = [zipper(images[b : b + 1]) for b in range(5)]
    for part, name in zip(together, ZippedTokens._fields, strict=True):
        torch.testing.assert_close(part, torch.cat([getattr(one, name) for one in alone]), atol=1e-5, rtol=1e-5)


@families
def test_frames_of_a_video_are_zipped_one_by_one(family: str) -> None:
    zipper, images = VisionZip(tower(family), 4, 2), pixels(6)
    with torch.no_grad():
        frames, flat = zipper(images.unflatten(0, (2, 3))), zipper(images)
    assert frames.tokens.shape == (2, 3, 6, WIDTH)
    for of_frames, of_images in zip(frames, flat, strict=True):
        assert torch.equal(of_frames.flatten(0, 1), of_images)


def gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    tokens.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@families
def test_gradients_are_those_of_the_rule(family: str) -> None:
    model, plain = tower(family).double(), tower(family).double()
    zipped = VisionZip(model, 4, 3)(pixels().double())
    states = plain(pixels().double(), output_hidden_states=True).hidden_states[-2]
    expected = []
    for b in range(2):
        rows = [states[b, [row + (family == "clip") for row in _members(zipped, b, token)]] for token in range(4, 7)]
        kept = states[b, [*range(family == "clip"), *(zipped.dominant[b] + (family == "clip")).tolist()]]
        targets = states[b, zipped.targets[b] + (family == "clip")]
        means = [r.mean(0) if len(r) else torch.zeros_like(targets[0]) for r in rows]
        expected.append(torch.cat([kept, targets + torch.stack(means)]))
    torch.testing.assert_close(zipped.tokens, torch.stack(expected))
    ours, theirs = gradients(model, zipped.tokens), gradients(plain, torch.stack(expected))
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name])


def _members(zipped: ZippedTokens, image: int, token: int) -> list[int]:
    patches = (zipped.assignment[image] == token).nonzero().flatten().tolist()
    return [patch for patch in patches if patch not in zipped.targets[image]]


@families
def test_a_frozen_tower_gives_tokens_without_gradient(family: str) -> None:
    assert not VisionZip(tower(family).requires_grad_(False), 4, 2)(pixels()).tokens.requires_grad


@families
def test_the_tower_is_as_it_was_afterwards(family: str) -> None:
    model, images = tower(family), pixels()
    with torch.no_grad():
        before = model(images).last_hidden_state
        zipper = VisionZip(model, 4, 2)
        zipper(images)
        assert torch.equal(model(images).last_hidden_state, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert list(zipper.state_dict()) == [f"tower.{name}" for name in model.state_dict()]


@families
def test_no_attention_map_is_asked_for(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA gets all of the tower's attention: none of it falls back to an eager map."""
    calls = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        VisionZip(tower(family), 4, 2)(pixels())
    assert len(calls) == BLOCKS


def test_adapted_projections_are_what_scores_are_made_of() -> None:
    plain, adapted = tower("clip"), tower("clip")
    attention = adapted.encoder.layers[BLOCKS - 2].self_attn
    attention.k_proj = Adapted(attention.k_proj)
    with torch.no_grad():
        assert not torch.equal(VisionZip(plain, 4, 2)(pixels()).dominant, VisionZip(adapted, 4, 2)(pixels()).dominant)


def test_a_model_that_holds_the_tower_will_do() -> None:
    model = llava("clip").model.vision_tower
    wrapped = nn.ModuleDict({"inside": model})
    assert VisionZip(wrapped).has_cls
    assert "dominant=54, contextual=10, level=-2" in repr(VisionZip(wrapped))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tower": nn.Linear(2, 2)}, ValueError, "holds 0 vision towers"),
    ({"tower": None}, TypeError, "vision_model is None"),
    ({"dominant": 0}, ValueError, "dominant is 0; it must be at least 1"),
    ({"contextual": True}, TypeError, "contextual is True"),
    ({"level": 0}, ValueError, "level is 0; the tower's 5 blocks make hidden_states 1 to 5"),
    ({"level": 6}, ValueError, "level is 6"),
    ({"level": -6}, ValueError, "level is -6"),
    ({"level": 1.0}, TypeError, r"level is 1\.0"),
    ({"merge": "max"}, ValueError, "merge is 'max'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_settings_are_refused_at_once(change: dict[str, Any], error: type[Exception], message: str) -> None:
    settings = {"tower": tower("clip")} | change
    with pytest.raises(error, match=f"VisionZip: {message}|VisionZip: .*{message}"):
        VisionZip(**settings)


def test_images_that_are_no_tensor_are_named() -> None:
    with pytest.raises(TypeError, match=r"^VisionZip: pixel_values is a ndarray; it must be a torch\.Tensor$"):
        VisionZip(tower("clip"))(pixels().numpy())


def test_a_budget_beyond_the_image_is_refused_when_it_is_seen() -> None:
    with pytest.raises(ValueError, match="dominant is 54 and contextual 10; an image has 10 rows here"):
        VisionZip(tower("clip"))(pixels())
