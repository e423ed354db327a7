"""``apply_pruning`` on tiny random models: what is left, what is generated, and that nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.integrations._pruning import (
    IMAGE,
    LAYERS,
    METHODS,
    WORDS,
    Oracle,
    language_model,
    llava,
)
from python_tests.integrations._towers import pixels
from vr_kernels import apply_pruning, remove_pruning

CASES: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep_ratio": 0.5},
    "pyramiddrop": {"layers": (1, 3, 4), "keep_ratios": (0.7, 0.5, 0.2)},
    "sparsevlm": {"layers": (0, 2, 3), "keep_counts": (6, 4, 3)},
    "random": {"layer": 2, "keep_ratio": 0.5},
}
ALL: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep_ratio": 1.0},
    "pyramiddrop": {"layers": (1, 3), "keep_ratios": (1.0, 1)},
    "sparsevlm": {"layers": (0, 2), "keep_counts": (99, 99)},
    "random": {"layer": 1, "keep_ratio": 1},
}
methods = pytest.mark.parametrize("method", CASES)
decoders = pytest.mark.parametrize("decoder", ["qwen2", "llama"])
PATCHES = 9
SEARCHES = {"greedy": {"do_sample": False}, "beams": {"num_beams": 3, "do_sample": False}}
BANNED = [0, IMAGE, 3]


def batch(*images: int, text: int = 4) -> dict[str, Tensor]:
    """Left-padded samples of so many images each, a word between them, words before and behind; and their pixels."""
    words = torch.Generator().manual_seed(5)
    samples = []
    for place, count in enumerate(images):
        ids = torch.randint(4, WORDS, (2 + place,), generator=words).tolist()
        for _ in range(count):
            ids += [IMAGE] * PATCHES + torch.randint(4, WORDS, (1,), generator=words).tolist()
        samples.append(ids + torch.randint(4, WORDS, (text,), generator=words).tolist())
    longest = max(map(len, samples))
    ids = torch.tensor([[0] * (longest - len(sample)) + sample for sample in samples])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return inputs | ({"pixel_values": pixels(sum(images))} if sum(images) else {})


def alone(inputs: dict[str, Tensor], place: int, images: tuple[int, ...]) -> dict[str, Tensor]:
    """One sample of a batch, without its padding."""
    real = inputs["attention_mask"][place].bool()
    own = {"input_ids": inputs["input_ids"][place : place + 1, real]}
    own["attention_mask"] = torch.ones_like(own["input_ids"])
    if images[place]:
        first = sum(images[:place])
        own["pixel_values"] = inputs["pixel_values"][first : first + images[place]]
    return own


@methods
@pytest.mark.parametrize(("decoder", "family"), [("qwen2", "siglip"), ("llama", "clip"), ("qwen2", "clip")])
def test_a_batch_generates_what_the_rule_says_of_each_sample(method: str, decoder: str, family: str) -> None:
    host, images = llava("llava", decoder, family), (1, 0, 2, 1)
    oracle, inputs = Oracle(host), batch(*images)
    embeddings = oracle.embeddings(**inputs)
    apply_pruning(host, method, **CASES[method])
    out = host.generate(
        **inputs, max_new_tokens=4, do_sample=False, suppress_tokens=BANNED,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    stages, length = METHODS[method](**CASES[method]), inputs["input_ids"].shape[1]
    for b in range(len(images)):
        real = inputs["attention_mask"][b].bool()
        vision = (inputs["input_ids"][b, real] == IMAGE).tolist()
        prompt = embeddings[b, real]
        tokens = out.sequences[b, length:].tolist()
        assert tokens == oracle.generate(prompt, vision, stages, 4, BANNED)
        for step in range(4):
            expected = oracle.logits(prompt, vision, tokens[:step], stages)
            torch.testing.assert_close(out.logits[step][b].double(), expected, atol=2e-4, rtol=2e-4)


@methods
def test_the_layers_hold_what_is_left(method: str) -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(2)
    text = int((inputs["input_ids"] != IMAGE).sum())
    apply_pruning(host, method, **CASES[method])
    with torch.no_grad():
        cache = host(**inputs).past_key_values
    held = [cache.get_seq_length(layer) - text for layer in range(LAYERS)]
    assert (
        held
        == {
            "fastv": [18, 18, 9, 9, 9, 9],
            "random": [18, 18, 9, 9, 9, 9],
            "pyramiddrop": [18, 12, 12, 9, 3, 3],
            "sparsevlm": [18, 7, 7, 5, 4, 4],  # one recycled token a stage
        }[method]
    )


@methods
@decoders
def test_all_kept_is_the_model_bit_for_bit(method: str, decoder: str) -> None:
    host, inputs = llava("llava", decoder, "clip"), batch(1, 2, 0)
    search: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}
    before = host.generate(**inputs, **search, return_dict_in_generate=True)
    with torch.no_grad():
        logits = host(**inputs).logits
        apply_pruning(host, method, **ALL[method])
        assert torch.equal(host(**inputs).logits, logits)
    after = host.generate(**inputs, **search, return_dict_in_generate=True)
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(x, y) for x, y in zip(before.logits, after.logits, strict=True))


@methods
def test_removed_the_model_is_as_it_was(method: str) -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(1, 2)
    keys, attributes = list(host.state_dict()), set(vars(host.model.language_model))
    with torch.no_grad():
        before = host(**inputs).logits
        apply_pruning(host, method, **CASES[method])
        assert list(host.state_dict()) == keys
        assert not torch.equal(host(**inputs).logits, before)
        assert remove_pruning(host) is host
        remove_pruning(host)
        assert torch.equal(host(**inputs).logits, before)
    assert set(vars(host.model.language_model)) == attributes
    hooked = [host.model, *host.model.language_model.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in hooked)


@methods
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_generation_of_a_batch_is_that_of_its_samples(method: str, search: dict[str, Any]) -> None:
    host, images = llava("llava", "qwen2", "siglip"), (2, 1, 0)
    apply_pruning(host, method, **CASES[method])
    inputs = batch(*images)
    together = host.generate(**inputs, max_new_tokens=5, suppress_tokens=BANNED, **search)
    length = inputs["input_ids"].shape[1]
    for b in range(3):
        own = alone(inputs, b, images)
        single = host.generate(**own, max_new_tokens=5, suppress_tokens=BANNED, **search)
        assert together[b, length:].tolist() == single[0, own["input_ids"].shape[1] :].tolist()


@methods
@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiles_are_dropped_as_one_image(method: str, kind: str) -> None:
    host = llava(kind, "qwen2", "siglip")
    sizes, tiles = torch.tensor([[24, 48], [48, 24]]), pixels(6).unflatten(0, (2, 3))
    with torch.no_grad():
        counts = [len(x) for x in host.model.get_image_features(tiles, sizes).pooler_output]
    ids = torch.tensor([[4, 5] + [IMAGE] * counts[0] + [6] + [IMAGE] * counts[1] + [7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiles, "image_sizes": sizes}
    oracle = Oracle(host)
    prompt = oracle.embeddings(**inputs)[0]
    apply_pruning(host, method, **CASES[method])
    tokens = host.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=BANNED)[0, ids.shape[1] :]
    stages = METHODS[method](**CASES[method])
    assert tokens.tolist() == oracle.generate(prompt, (ids[0] == IMAGE).tolist(), stages, 3, BANNED)


@methods
@decoders
def test_a_decoder_by_itself_takes_a_mask(method: str, decoder: str) -> None:
    host = language_model(decoder)
    oracle = Oracle(host)
    ids = batch(2)["input_ids"]
    vision = ids == IMAGE
    embeddings = oracle.embeddings(input_ids=ids)[0]
    apply_pruning(host, method, **CASES[method])
    out = host.generate(ids, vision_mask=vision, max_new_tokens=4, do_sample=False, suppress_tokens=BANNED)
    stages = METHODS[method](**CASES[method])
    expected = oracle.generate(embeddings, vision[0].tolist(), stages, 4, BANNED)
    assert out[0, ids.shape[1] :].tolist() == expected
    beams = host.generate(ids, vision_mask=vision, max_new_tokens=4, num_beams=2, do_sample=False)
    assert beams.shape == out.shape


@methods
def test_later_turns_read_the_pruned_prompt(method: str) -> None:
    """Several tokens behind a cached prompt at once give what they give one by one."""
    host, inputs = llava("llava", "llama", "clip"), batch(2, 1)
    apply_pruning(host, method, **CASES[method])
    later = torch.tensor([[7, 9, 11], [12, 13, 4]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.int64)], 1)
    positions = mask.cumsum(1) - 1
    n = inputs["input_ids"].shape[1]
    with torch.no_grad():
        cache = host(**inputs, position_ids=positions[:, :n].clamp(min=0)).past_key_values
        one_by_one = copy.deepcopy(cache)
        together = host(
            input_ids=later, attention_mask=mask, position_ids=positions[:, n:], past_key_values=cache
        ).logits
        for step in range(3):
            single = host(
                input_ids=later[:, step : step + 1], attention_mask=mask[:, : n + step + 1],
                position_ids=positions[:, n + step : n + step + 1], past_key_values=one_by_one,
            ).logits  # fmt: skip
            torch.testing.assert_close(single[:, 0], together[:, step], atol=1e-4, rtol=1e-4)


def test_the_output_has_a_row_for_each_token_of_the_prompt() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(2, 1)
    apply_pruning(host, "fastv", layer=1, keep_ratio=0.5)
    with torch.no_grad():
        out = host.model(**inputs).last_hidden_state
    vision = inputs["input_ids"] == IMAGE
    zero = (out == 0).all(-1)
    assert out.shape[:2] == vision.shape
    assert (zero & vision).sum(1).tolist() == [9, 5]  # of 18 and 9
    assert not (zero & ~vision & inputs["attention_mask"].bool()).any()


def test_two_generations_at_a_time_do_not_mix() -> None:
    host, images = llava("llava", "qwen2", "clip"), (2, 1)
    apply_pruning(host, "pyramiddrop", **CASES["pyramiddrop"])
    inputs = batch(*images)
    prompts = [alone(inputs, b, images) for b in range(2)]
    with torch.no_grad():
        caches = [host(**prompt).past_key_values for prompt in prompts]
        token = torch.tensor([[7]])
        mixed = []
        for prompt, cache in zip(prompts, caches, strict=True):
            position = torch.tensor([[prompt["input_ids"].shape[1]]])
            mixed.append(host(input_ids=token, past_key_values=cache, position_ids=position).logits)
        cache = host(**prompts[0]).past_key_values
        again = host(
            input_ids=token, past_key_values=cache, position_ids=torch.tensor([[prompts[0]["input_ids"].shape[1]]])
        ).logits
    assert torch.equal(mixed[0], again)


def test_a_copy_of_the_model_prunes_by_itself() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(1)
    apply_pruning(host, "fastv", **CASES["fastv"])
    twin = copy.deepcopy(host)
    with torch.no_grad():
        expected = host(**inputs).logits
        for parameter in host.parameters():
            parameter.data.fill_(torch.nan)
        assert torch.equal(twin(**inputs).logits, expected)
        assert remove_pruning(twin)(**inputs).past_key_values.get_seq_length(3) == inputs["input_ids"].shape[1]
    assert "_vr_kernels_pruning" in vars(host.model.language_model)


def test_applied_again_the_new_method_holds() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(1)
    apply_pruning(host, "pyramiddrop", **CASES["pyramiddrop"])
    apply_pruning(host, "fastv", layer=4, keep_ratio=0.0)
    with torch.no_grad():
        cache = host(**inputs).past_key_values
    lengths = [cache.get_seq_length(layer) for layer in range(LAYERS)]
    n = inputs["input_ids"].shape[1]
    assert lengths == [n] * 4 + [n - PATCHES] * 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_layer_keeps_its_attention(implementation: str) -> None:
    """The choice and what follows do not depend on which attention runs, and SDPA is never left."""
    host, inputs = llava("llava", "qwen2", "clip"), batch(2, 1)
    apply_pruning(host, "fastv", **CASES["fastv"])
    with torch.no_grad():
        expected = host(**inputs).logits
        host.set_attn_implementation(implementation)
        maps = []
        hooks = [
            layer.self_attn.register_forward_hook(lambda module, args, output: maps.append(output[1]))
            for layer in host.model.language_model.layers
        ]
        got = host(**inputs).logits
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(got[:, -1], expected[:, -1], atol=1e-4, rtol=1e-4)
    assert len(maps) == LAYERS
    if implementation == "sdpa":
        assert all(one is None for one in maps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_tokens_by_float32_scores(dtype: torch.dtype) -> None:
    host, inputs = llava("llava", "qwen2", "clip").to(dtype), batch(2, 1)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    apply_pruning(host, "sparsevlm", **CASES["sparsevlm"])
    out = host.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=BANNED)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


def test_a_prompt_that_ends_in_vision_keeps_its_last_token() -> None:
    host = language_model("qwen2")
    apply_pruning(host, "fastv", layer=1, keep_ratio=0.0)
    ids = torch.randint(4, WORDS, (1, 6))
    with torch.no_grad():
        out = host(ids, vision_mask=torch.ones(1, 6, dtype=torch.bool))
    assert [out.past_key_values.get_seq_length(layer) for layer in (0, 1)] == [6, 1]
    assert (out.logits[0, -1] != 0).any()
    assert (out.logits[0, :-1] == 0).all()


def test_without_a_cache_every_step_is_a_prompt_of_its_own() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(1)
    apply_pruning(host, "fastv", **CASES["fastv"])
    out = host.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=BANNED, use_cache=False)
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(3):
            logits = host(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits[:, -1]
            logits[:, BANNED] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(out, ids)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("fast", {}, ValueError, "method is 'fast'; it must be one of fastv, pyramiddrop, sparsevlm, random, vispruner"),
    ("fastv", {"ratio": 0.5}, TypeError, "fastv has no option 'ratio'; it has layer, keep_ratio"),
    ("fastv", {"layer": 0}, ValueError, "fastv's layer has 0; it must be at least 1"),
    ("fastv", {"layer": LAYERS}, ValueError, f"in front of layer {LAYERS}, counted from 0; the decoder has {LAYERS}"),
    ("fastv", {"keep_ratio": 1.5}, ValueError, r"keep_ratio has 1\.5; it must be from 0 to 1"),
    ("fastv", {"keep_ratio": "half"}, TypeError, "keep_ratio has 'half'; it must be a number"),
    ("random", {"layer": 2.0}, TypeError, r"layer has 2\.0; it must be an int"),
    ("pyramiddrop", {"layers": (3, 2)}, ValueError, r"layers is \(3, 2\); it must rise"),
    ("pyramiddrop", {"layers": (2, 3)}, ValueError, "keep_ratios has 3 entries and layers 2; one belongs to each"),
    ("sparsevlm", {"keep_counts": (1, -1, 2)}, ValueError, "keep_counts has -1; each must be an int from 0"),
]


@pytest.mark.parametrize(("method", "options", "error", "message"), BAD, ids=lambda x: str(x)[:30])
def test_what_no_model_can_do_is_refused(
    method: str, options: dict[str, Any], error: type[Exception], message: str
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
