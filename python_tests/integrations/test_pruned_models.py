"""A pruned model beside the plain one: what is the same, what is put back, what does not mix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from python_tests.integrations._pruning import IMAGE, LAYERS, METHODS, Oracle, llava
from python_tests.integrations._pruning_batches import (
    ALL,
    BANNED,
    CASES,
    PATCHES,
    alone,
    batch,
    decoders,
    methods,
)
from python_tests.integrations._towers import Adapted, pixels
from vr_kernels import apply_pruning, remove_pruning
from vr_kernels.compression.pruning import keep_highest
from vr_kernels.integrations import pruning_rules


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

    def next_logits(prompt: dict[str, Any], cache: Any) -> torch.Tensor:
        position = torch.tensor([[prompt["input_ids"].shape[1]]])
        logits: torch.Tensor = host(input_ids=torch.tensor([[7]]), past_key_values=cache, position_ids=position).logits
        return logits

    with torch.no_grad():
        caches = [host(**prompt).past_key_values for prompt in prompts]
        mixed = [next_logits(prompt, cache) for prompt, cache in zip(prompts, caches, strict=True)]
        for prompt, logits in zip(prompts, mixed, strict=True):
            assert torch.equal(next_logits(prompt, host(**prompt).past_key_values), logits)


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
def test_half_precision_keeps_tokens_by_float32_scores(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    host, inputs = llava("llava", "qwen2", "clip").to(dtype), batch(2, 1)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    seen = []

    def observed(scores: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(scores.dtype)
        return keep_highest(scores, *others)

    monkeypatch.setattr(pruning_rules, "keep_highest", observed)
    apply_pruning(host, "sparsevlm", **CASES["sparsevlm"])
    out = host.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=BANNED)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    assert seen == [torch.float32] * len(CASES["sparsevlm"]["layers"])


def test_placeholders_are_found_among_embeddings_too() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(2, 1)
    apply_pruning(host, "fastv", **CASES["fastv"])
    with torch.no_grad():
        expected = host(**inputs).logits
        embeddings = host.get_input_embeddings()(inputs.pop("input_ids"))
        assert torch.equal(host(**inputs, inputs_embeds=embeddings).logits, expected)


def test_an_adapted_projection_is_honoured() -> None:
    """Adapters take a projection's place, also after pruning was applied."""
    host, inputs = llava("llava", "qwen2", "clip"), batch(1)
    plain = copy.deepcopy(host)
    apply_pruning(host, "fastv", **CASES["fastv"])
    for model in (host, plain):
        scored = model.model.language_model.layers[1].self_attn
        scored.k_proj, scored.q_proj = Adapted(scored.k_proj), Adapted(scored.q_proj)
    oracle = Oracle(plain)
    prompt, vision = oracle.embeddings(**inputs)[0], (inputs["input_ids"][0] == IMAGE).tolist()
    with torch.no_grad():
        logits = host(**inputs).logits[0, -1]
    expected = oracle.logits(prompt, vision, [], METHODS["fastv"](**CASES["fastv"]))
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=2e-4)


def test_hidden_states_above_a_stage_have_the_rows_that_are_left() -> None:
    host, inputs = llava("llava", "qwen2", "clip"), batch(2)
    apply_pruning(host, "fastv", layer=2, keep_ratio=0.5)
    with torch.no_grad():
        states = host(**inputs, output_hidden_states=True).hidden_states
    n = inputs["input_ids"].shape[1]
    assert [state.shape[1] for state in states] == [n] * 3 + [n - 9] * (LAYERS - 2)


def test_the_loss_of_given_labels_is_that_of_the_logits() -> None:
    host, inputs = llava("llava", "llama", "clip"), batch(1, 2)
    apply_pruning(host, "pyramiddrop", **CASES["pyramiddrop"])
    labels = torch.where((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100, inputs["input_ids"])
    with torch.no_grad():
        out = host(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@methods
def test_an_answer_with_labels_has_no_say_in_what_is_dropped(method: str) -> None:
    """A likelihood whose tokens were chosen by the answer is not that of the answer."""
    host, inputs = llava("llava", "llama", "clip"), batch(1, 2)
    apply_pruning(host, method, **CASES[method])
    prompt = inputs["input_ids"].shape[1]
    words = torch.tensor([[5, 9, 7], [11, 4, 6]])
    longer = inputs | {
        "input_ids": torch.cat([inputs["input_ids"], words], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(words)], 1),
    }
    labels = longer["input_ids"].clone()
    labels[:, :prompt] = -100
    with torch.no_grad():
        expected = host(**inputs).logits[:, -1]
        scored = host(**longer, labels=labels).logits[:, prompt - 1]
        without_labels = host(**longer).logits[:, prompt - 1]
    torch.testing.assert_close(scored, expected)
    assert method == "random" or not torch.allclose(without_labels, expected)


def test_a_model_made_from_a_known_one_is_known() -> None:
    import transformers as hf

    class OwnConfig(hf.LlavaNextConfig):
        model_type = "own"

    host, tiles, sizes = llava("llava_next", "qwen2", "clip"), pixels(3)[None], torch.tensor([[24, 48]])
    own = hf.LlavaNextForConditionalGeneration(OwnConfig(**host.config.to_dict() | {"model_type": "own"})).eval()
    apply_pruning(own, "random", layer=1, keep_ratio=0.0)
    with torch.no_grad():
        count = len(own.model.get_image_features(tiles, sizes).pooler_output[0])
        ids = torch.tensor([[4] + [IMAGE] * count + [5]])
        cache = own(input_ids=ids, pixel_values=tiles, image_sizes=sizes).past_key_values
    assert [cache.get_seq_length(layer) for layer in (0, 1)] == [count + 2, 2]
