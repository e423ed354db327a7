"""``apply_pruning`` on tiny random models: what is left, and what is generated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from python_tests.integrations._pruning import IMAGE, LAYERS, METHODS, WORDS, Oracle, language_model, llava
from python_tests.integrations._pruning_batches import (
    BANNED,
    CASES,
    SEARCHES,
    alone,
    batch,
    decoders,
    methods,
)
from python_tests.integrations._towers import pixels
from vr_kernels import apply_pruning


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


@methods
def test_right_padding_is_as_good_as_left(method: str) -> None:
    host, inputs = llava("llava", "llama", "clip"), batch(1, 0, 2)
    apply_pruning(host, method, **CASES[method])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    order = (1 - mask).argsort(dim=1, stable=True)  # the padding behind the text
    right = {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order)}
    with torch.no_grad():
        expected = host(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        got = host(**right, pixel_values=inputs["pixel_values"]).logits
    real = right["attention_mask"].bool()
    torch.testing.assert_close(
        got[real], expected.gather(1, order[..., None].expand_as(got))[real], atol=1e-4, rtol=1e-4
    )


@methods
def test_positions_may_start_anywhere(method: str) -> None:
    """RoPE sees differences alone, so what is generated later must count on from where the prompt's positions began."""
    host, inputs = llava("llava", "qwen2", "clip"), batch(2, 1)
    apply_pruning(host, method, **CASES[method])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = []
    with torch.no_grad():
        for start in (0, 11):
            cache = host(**inputs, position_ids=positions[:, :-1] + start).past_key_values
            token = {"input_ids": torch.tensor([[7], [9]]), "attention_mask": mask, "past_key_values": cache}
            logits.append(host(**token, position_ids=positions[:, -1:] + start).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


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
