"""``capture_features``: how long what it keeps lives, what it leaves on the model, and what it refuses."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.integrations._towers import WIDTH, pixels, tower
from vr_kernels import capture_features


def test_levels_that_were_not_asked_for_are_freed() -> None:
    model = tower("siglip")
    alive: dict[int, weakref.ref[Tensor]] = {}
    for number, block in enumerate(model.encoder.layers, start=1):
        block.register_forward_hook(lambda m, args, output, n=number: alive.update({n: weakref.ref(output)}))
    with torch.no_grad(), capture_features(model, (2, 4), saliency="received") as captured:
        model(pixels())
    gc.collect()
    assert [number for number, reference in alive.items() if reference() is not None] == [2, 4]
    # Their storage is what the views keep.
    assert all(feature.untyped_storage().nbytes() == 2 * 9 * WIDTH * 4 for feature in captured.features)


def test_release_frees_the_storage_at_once() -> None:
    model = tower("clip")
    with torch.no_grad(), capture_features(model, (2, 4), joint=True) as captured:
        model(pixels())
    feature = weakref.ref(captured.joint)
    captured.release_features()
    gc.collect()
    assert feature() is None
    with pytest.raises(RuntimeError, match="nothing is captured"):
        _ = captured.features


def test_the_features_outlive_the_context_and_the_next_pass_replaces_them() -> None:
    model = tower("clip")
    capture = capture_features(model, 2)
    with torch.no_grad():
        with capture:
            model(pixels())
        first = capture.features[0]
        model(pixels() * 2)  # outside: not captured
        assert capture.features[0] is first
        with capture:
            model(pixels() * 2)
    assert not torch.equal(capture.features[0], first)


def test_a_pass_that_fails_leaves_nothing_captured() -> None:
    model = tower("clip")
    with torch.no_grad(), capture_features(model, 2) as captured:
        model(pixels())
        with pytest.raises(ValueError, match="doesn't match model"):
            model(pixels(height=16, width=40))
        with pytest.raises(RuntimeError, match="nothing is captured"):
            _ = captured.saliency


def test_leaving_takes_every_hook_off_even_after_an_error() -> None:
    model = tower("clip")
    names, before = set(model.state_dict()), hooks_on(model)
    with pytest.raises(ValueError, match="doesn't match model"), capture_features(model, (0, 2), saliency="cls"):
        model(pixels(height=16, width=40))
    assert hooks_on(model) == before
    with capture_features(model, (0, 2), saliency="cls"):
        assert hooks_on(model) == before + 7
        assert set(model.state_dict()) == names
    assert hooks_on(model) == before


def test_other_uses_of_hidden_states_go_on_undisturbed() -> None:
    model, images = tower("clip"), pixels()
    with torch.no_grad():
        expected = model(images, output_hidden_states=[1, 3])
        with capture_features(model, (2,), saliency="cls"):
            result = model(images, output_hidden_states=[1, 3])
    assert torch.equal(result.last_hidden_state, expected.last_hidden_state)
    assert [state is None for state in result.hidden_states] == [state is None for state in expected.hidden_states]


REFUSALS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "levels has 6; the tower's 5 blocks have hidden_states 0 to 5": (ValueError, "clip", {"levels": (1, 6)}),
    "levels has -7": (ValueError, "clip", {"levels": -7}),
    "levels is empty": (ValueError, "clip", {"levels": ()}),
    "levels is 2.0; it must be an int or a sequence of int": (TypeError, "clip", {"levels": 2.0}),
    "levels is None; it must be an int or a sequence of int": (TypeError, "clip", {"levels": None}),
    "joint is 'x'; it must be a bool": (TypeError, "clip", {"joint": "x"}),
    'saliency is [\'cls\']; it must be None, "cls", "received" or a function': (
        ValueError,
        "clip",
        {"saliency": ["cls"]},
    ),
    "levels is (5, -1), which names a level twice": (ValueError, "clip", {"levels": (5, -1)}),
    "levels has 2.0; it must be an int": (TypeError, "clip", {"levels": [2.0]}),
    "levels has True; it must be an int": (TypeError, "clip", {"levels": [True]}),
    'saliency is \'CLS\'; it must be None, "cls", "received" or a function': (ValueError, "clip", {"saliency": "CLS"}),
    'saliency is "cls", and this tower has no CLS row': (ValueError, "siglip", {"saliency": "cls"}),
    "saliency_level has 0; the tower's 5 blocks have hidden_states 1 to 5": (
        ValueError,
        "clip",
        {"saliency_level": 0},
    ),
}


@pytest.mark.parametrize(("words", "fault"), REFUSALS.items(), ids=range(len(REFUSALS)))
def test_bad_arguments_are_refused_in_words(words: str, fault: tuple[type[Exception], str, dict[str, Any]]) -> None:
    kind, family, arguments = fault
    with pytest.raises(kind) as caught:
        capture_features(**({"vision_model": tower(family), "levels": 2} | arguments))
    assert str(caught.value).startswith(f"capture_features: {words}")


def test_a_model_without_exactly_one_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear, holds 0 vision towers"):
        capture_features(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="holds 2 vision towers"):
        capture_features(nn.ModuleList([tower("clip"), tower("siglip")]), 0)
    with pytest.raises(TypeError, match="vision_model is a str"):
        capture_features("clip", 0)  # type: ignore[arg-type]


def test_patches_that_are_no_grid_are_refused() -> None:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    model = Siglip2VisionModel(
        Siglip2VisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    arguments = (torch.randn(1, 256, 3 * 16 * 16), torch.ones(1, 256, dtype=torch.int64), torch.tensor([[16, 16]]))
    with torch.no_grad(), capture_features(model, 1), pytest.raises(ValueError, match="only a grid"):
        model(*arguments)


def test_entering_twice_at_once_and_reading_what_was_not_asked_for_are_refused() -> None:
    model = tower("clip")
    with torch.no_grad(), capture_features(model, 1) as captured:
        with pytest.raises(RuntimeError, match="nothing is captured"):
            _ = captured.features
        model(pixels())
        assert captured.saliency is None
        with pytest.raises(RuntimeError, match="ask for joint=True"):
            _ = captured.joint
        with pytest.raises(RuntimeError, match="entered already"):
            captured.__enter__()


def test_a_saliency_function_of_another_shape_is_refused() -> None:
    model = tower("clip")
    with (
        torch.no_grad(),
        capture_features(model, 1, saliency=lambda query, key: query),
        pytest.raises(ValueError, match=r"saliency returned \(2, 10, 2, 8\); it must be \(2, 10\)"),
    ):
        model(pixels())


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_saliency_function_that_returns_nothing_is_refused() -> None:
    model = tower("clip")
    with (
        capture_features(model, 2, saliency=lambda query, key: None),  # type: ignore[arg-type, return-value]
        pytest.raises(
            TypeError, match=r"^capture_features: what saliency returned is None; it must be a torch\.Tensor"
        ),
    ):
        model(pixels())


def test_a_context_that_cannot_be_entered_leaves_no_hook() -> None:
    model = tower("clip")
    capture, before = capture_features(model, (2, 3), saliency="cls"), hooks_on(model)
    del model.encoder.layers[2].self_attn.q_proj  # changed since the capture was made
    with pytest.raises(AttributeError, match="q_proj"), capture:
        pass
    assert hooks_on(model) == before


@pytest.mark.parametrize("options", [{}, {"joint": True}, {"saliency": "cls"}], ids=str)
def test_a_tower_compiled_before_says_so(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = tower("clip")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(pixels())
        with (
            capture_features(model, (2, 3), **options) as captured,
            pytest.raises(RuntimeError, match=r"hidden_states\[2\], hidden_states\[3\].* did not come by"),
        ):
            compiled(pixels())
        with pytest.raises(RuntimeError, match="nothing is captured"):
            _ = captured.features
        with capture_features(model, (2, 3), **options) as captured:
            model(pixels())
        assert len(captured.features) == 2
