"""``apply_pruning`` refuses what it cannot do, with what it may be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from python_tests.integrations._pruning import LAYERS, language_model, llava
from python_tests.integrations._pruning_batches import (
    CASES,
    batch,
)
from vr_kernels import apply_pruning, apply_vision_remember, apply_visionzip, remove_pruning

BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("fast", {}, ValueError, "method is 'fast'; it must be one of fastv, pyramiddrop, sparsevlm, random, vispruner"),
    (["fastv"], {}, ValueError, "method is .'fastv'.; it must be one of fastv"),
    ("fastv", {"ratio": 0.5}, TypeError, "fastv has no option 'ratio'; it has layer, keep_ratio"),
    ("fastv", {"layer": 0}, ValueError, "fastv's layer has 0; it must be at least 1"),
    ("fastv", {"layer": LAYERS}, ValueError, f"in front of layer {LAYERS}, counted from 0; the decoder has {LAYERS}"),
    ("fastv", {"keep_ratio": 1.5}, ValueError, r"keep_ratio has 1\.5; it must be from 0 to 1"),
    ("fastv", {"keep_ratio": "half"}, TypeError, "keep_ratio has 'half'; it must be a number"),
    ("random", {"layer": 2.0}, TypeError, r"layer has 2\.0; it must be an int"),
    ("pyramiddrop", {"layers": (3, 2)}, ValueError, r"layers is \(3, 2\); it must rise"),
    ("pyramiddrop", {"layers": (2, 3)}, ValueError, "keep_ratios has 3 entries and layers 2; one belongs to each"),
    ("sparsevlm", {"keep_counts": (1, -1, 2)}, ValueError, "keep_counts has -1; it must be at least 0"),
    ("sparsevlm", {"keep_counts": (1, 2.5, 2)}, TypeError, r"keep_counts has 2\.5; it must be an int"),
    ("sparsevlm", {"layers": 2}, TypeError, "sparsevlm's layers is 2; it must be a tuple or list"),
    ("pyramiddrop", {"keep_ratios": 0.5}, TypeError, r"keep_ratios is 0\.5; it must be a tuple or list"),
    ("random", {"seed": "a"}, TypeError, "seed is 'a'; it must be an int"),
]


@pytest.mark.parametrize(("method", "options", "error", "message"), BAD, ids=lambda x: str(x)[:30])
def test_what_no_model_can_do_is_refused(
    method: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    host = language_model("qwen2")
    with pytest.raises(error, match=message):
        apply_pruning(host, method, **options)
    assert not any(module._forward_pre_hooks for module in host.modules())


def test_models_of_other_types_are_refused_with_the_known_ones() -> None:
    import transformers as hf

    sizes: dict[str, Any] = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel of type 'gpt2'; .* qwen2, llama, .* llava, llava_next"):
        apply_pruning(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)), "fastv")
    sliding = language_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=None)
    with pytest.raises(ValueError, match="sliding attention"):
        apply_pruning(sliding, "fastv")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^remove_pruning: model is None; it must be a torch.nn.Module"):
        remove_pruning(None)


def test_calls_that_cannot_be_pruned_are_refused() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(1)
    apply_pruning(host, "fastv", **CASES["fastv"])
    with pytest.raises(ValueError, match="of fixed length; use a DynamicCache"):
        host.generate(**inputs, max_new_tokens=2, cache_implementation="static")
    with torch.no_grad():
        cache = host(input_ids=torch.tensor([[4, 5]])).past_key_values
        with pytest.raises(ValueError, match=r"behind 2 tokens that the cache holds; .* in one piece"):
            host(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], past_key_values=cache)
        pruned = host(**inputs).past_key_values
        with pytest.raises(ValueError, match="cache is of a batch of 1, and this call of 2"):
            host(input_ids=torch.tensor([[4], [5]]), past_key_values=pruned)
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\)"):
        host.train()(**inputs)


@pytest.mark.parametrize("kind", ["llava", "alone"])
def test_tokens_that_are_guessed_ahead_are_refused(kind: str) -> None:
    host = llava("llava", "qwen2", "clip") if kind == "llava" else language_model("qwen2")
    inputs = batch(1) if kind == "llava" else {"input_ids": torch.tensor([[4, 5, 4]])}
    guessing: dict[str, Any] = {"prompt_lookup_num_tokens": 1, "max_new_tokens": 3}
    expected = host.generate(**inputs, **guessing)
    apply_pruning(host, "fastv", **CASES["fastv"])
    with pytest.raises(ValueError, match="assistant_model or prompt_lookup_num_tokens guesses"):
        host.generate(**inputs, **guessing)
    assert torch.equal(remove_pruning(host).generate(**inputs, **guessing), expected)


def test_blocks_that_would_miss_tokens_are_refused() -> None:
    blocks: dict[str, Any] = {"layers": (1, 3), "levels": (1, 2), "num_heads": 4}
    host = apply_vision_remember(llava("llava", "qwen2", "clip"), **blocks)
    with pytest.raises(ValueError, match=r"fastv leaves 2 decoder layers with .* blocks at layers 1, 3"):
        apply_pruning(host, "fastv", layer=2)
    apply_pruning(host, "fastv", layer=3).generate(**batch(1), max_new_tokens=2)
    host = apply_pruning(llava("llava", "qwen2", "clip"), "fastv", layer=2)
    with pytest.raises(ValueError, match="apply_vision_remember: fastv leaves 2 decoder layers"):
        apply_vision_remember(host, **blocks)
    assert not hasattr(host.model.language_model.layers[0], "vision_remember")


@pytest.mark.parametrize("replace", [apply_visionzip, functools.partial(apply_pruning, method="vispruner")])
def test_encoders_that_blocks_read_are_not_replaced(replace: Callable[..., Any]) -> None:
    host = apply_vision_remember(llava("llava", "qwen2", "clip"), layers=(1,), levels=(1, 2), num_heads=4)
    with pytest.raises(ValueError, match="the model has VisionRemember blocks"):
        replace(host)


MASKS: list[tuple[Any, type[Exception], str]] = [
    (torch.ones(1, 5), TypeError, r"vision_mask is torch\.float32; it must be a torch\.bool tensor"),
    ([True], TypeError, "vision_mask is list"),
    (torch.ones(2, 5, dtype=torch.bool), ValueError, r"vision_mask has shape \(2, 5\); it must be \(1, 5\)"),
    (torch.ones(1, 6, dtype=torch.bool), ValueError, r"vision_mask has shape \(1, 6\); it must be \(1, 5\)"),
]


@pytest.mark.parametrize(("mask", "error", "message"), MASKS, ids=lambda x: str(x)[:20])
def test_masks_that_do_not_fit_are_refused(mask: Any, error: type[Exception], message: str) -> None:
    host = apply_pruning(language_model("qwen2"), "random")
    with pytest.raises(error, match=message):
        host(torch.ones(1, 5, dtype=torch.int64), vision_mask=mask)
