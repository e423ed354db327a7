"""Each family of models with blocks: the same model before training, and one function however it is run after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.integrations.vision_remember import _families as tiny

SAMPLES = [[0], [1, 2], []]  # images of each sample; left padding makes up for their lengths

each_family = pytest.mark.parametrize("kind", tiny.KINDS)


@each_family
def test_untrained_blocks_change_no_bit(kind: str) -> None:
    base, patched = tiny.model(kind), tiny.patched(kind, random=False)
    inputs = tiny.batch(base, kind, SAMPLES)
    assert torch.equal(patched(**inputs).logits, base(**inputs).logits)
    assert torch.equal(tiny.generate(patched, inputs), tiny.generate(base, inputs))


@each_family
def test_trained_blocks_change_what_has_an_image_and_nothing_else(kind: str) -> None:
    base, patched = tiny.model(kind), tiny.patched(kind)
    inputs = tiny.batch(base, kind, SAMPLES)
    moved = (patched(**inputs).logits - base(**inputs).logits).abs().amax((1, 2))
    assert (moved[:2] > 0.1).all()
    assert moved[2] == 0


@each_family
def test_generation_is_one_function_with_and_without_a_cache(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, SAMPLES)
    expected = tiny.generate(model, inputs)
    assert torch.equal(tiny.generate(model, inputs, use_cache=False), expected)
    assert torch.equal(tiny.generate(model, inputs, cache_implementation="static"), expected)


@each_family
def test_a_sample_of_a_padded_batch_is_the_sample_alone(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, SAMPLES)
    beams: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2}
    greedy, searched = tiny.generate(model, inputs), tiny.generate(model, inputs, **beams)
    for i, numbers in enumerate(SAMPLES):
        alone = tiny.batch(model, kind, [numbers], seeds=[i])
        assert torch.equal(tiny.generate(model, alone), greedy[i : i + 1])
        assert torch.equal(tiny.generate(model, alone, **beams), searched[2 * i : 2 * i + 2])


@each_family
def test_tokens_that_are_guessed_ahead_are_no_prompt(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]])
    inputs["input_ids"][0, -1] = inputs["input_ids"][0, 0]  # what follows the first is guessed behind the last
    asked: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    expected, got = (
        model.generate(**inputs, **asked, **how, max_new_tokens=2).logits[0][:1]
        for how in ({}, {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1})
    )
    torch.testing.assert_close(got, expected)


@each_family
def test_image_tokens_may_be_guessed_behind_the_prompt(kind: str) -> None:
    """An answer says again what stood before the image, so that what follows there is guessed."""
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]])
    length, guessed = inputs["input_ids"].shape[1], []

    def say(ids: Tensor, scores: Tensor) -> Tensor:
        word = tiny.START if ids.shape[1] == length else tiny.END
        return scores.masked_fill(torch.arange(scores.shape[1]) == word, 1e4)

    def note(model: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        guessed.append(ids.shape[1] < length and bool((ids == tiny.IMAGE).any()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    asked: dict[str, Any] = {"max_new_tokens": 3, "logits_processor": [say], "do_sample": False}
    tokens = model.generate(**inputs, **asked, prompt_lookup_num_tokens=2, max_matching_ngram_size=1)
    assert any(guessed)
    assert tokens[0, length:].tolist() == [tiny.START, tiny.END, tiny.END]


@each_family
def test_blocks_run_once_each_in_the_prefill_and_never_in_decoding(kind: str) -> None:
    model, calls = tiny.patched(kind), []
    for block in tiny.blocks(model):
        block.register_forward_hook(lambda *args: calls.append(1))
    tiny.generate(model, tiny.batch(model, kind, [[0, 1]]))
    assert len(calls) == len(tiny.LAYERS)
    calls.clear()
    tiny.generate(model, tiny.batch(model, kind, [[]]))
    assert not calls


@each_family
def test_answers_do_not_leak_into_what_stands_before_them(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]], text=6)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -1] = 8 + (inputs["input_ids"][0, -1] - 8 + 1) % 32
    answered, changed = (model(**given, labels=labels).logits[:, :-1] for given in (inputs, other))
    assert torch.equal(answered, changed)
    leaking, leaked = (model(**given).logits[:, :-1] for given in (inputs, other))
    assert (leaking - leaked).abs().max() > 1e-4  # what labels, or prompt_mask, prevent


@each_family
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny.patched(kind).train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        inputs = tiny.batch(model, kind, SAMPLES)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(f"layers.{number - 1}.vision_remember" in " ".join(gradients[0]) for number in tiny.LAYERS)


@each_family
def test_hidden_states_that_are_asked_for_have_passed_the_blocks(kind: str) -> None:
    model, refreshed = tiny.model(kind), []
    inputs = tiny.batch(model, kind, [[0]])
    model(**inputs, output_hidden_states=True)  # transformers' own hooks stand on the layers before ours do
    tiny.apply_vision_remember(model, layers=tiny.LAYERS, levels=(1, 2), num_heads=4)
    tiny.randomise_blocks(model)
    for block in tiny.blocks(model):
        block.register_forward_hook(lambda block, args, output: refreshed.append(output))
    states = model(**inputs, output_hidden_states=True).hidden_states
    for number, output in zip(tiny.LAYERS, refreshed, strict=True):
        assert torch.equal(states[number], output)


@pytest.mark.parametrize("window_position", ["none", "learned"])
@each_family
def test_training_on_text_alone_touches_every_block(kind: str, window_position: str) -> None:
    model = tiny.patched(kind, neighborhood=(1, 0), window_position=window_position).train()
    inputs = tiny.batch(model, kind, [[], []])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for block in tiny.blocks(model):
        assert all(p.grad is not None and not p.grad.any() for p in block.parameters())


@each_family
def test_blocks_train_through_frozen_models(kind: str) -> None:
    model = tiny.patched(kind, random=False).train().requires_grad_(False)
    inputs = tiny.batch(model, kind, [[0]])
    for block in tiny.blocks(model):
        block.requires_grad_(True)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    block = tiny.blocks(model)[0]
    assert block.cross_attention is not None
    assert block.cross_attention.contraction.weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # those of a frozen encoder's blocks
@each_family
def test_reentrant_checkpoints_run_no_graph_of_a_frozen_encoder(kind: str) -> None:
    """They make embeddings require gradients, the encoder's among them, and each block would run back through it."""
    gradients, graphs = [], []
    for checkpointing in (False, True):
        model = tiny.patched(kind).train()
        for parameter in tiny.FAMILIES[kind].parameters(model.model):
            parameter.requires_grad_(False)
        tiny.blocks(model)[0].register_forward_pre_hook(
            lambda block, args: graphs.extend(level.requires_grad for level in args[2])
        )
        if checkpointing:
            model.enable_input_require_grads()
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": True})
        inputs = tiny.batch(model, kind, [[0]])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert not any(graphs)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-5, atol=1e-6, msg=name)


@each_family
def test_half_precision_runs_in_it(kind: str) -> None:
    model = tiny.model(kind).to(torch.bfloat16)
    tiny.apply_vision_remember(model, layers=(1,), levels=(1, 2), num_heads=4)
    inputs = tiny.batch(model, kind, SAMPLES)
    assert all(p.dtype == torch.bfloat16 for block in tiny.blocks(model) for p in block.parameters())
    assert model(**inputs).logits.isfinite().all()


@each_family
def test_a_prefill_in_parts_is_refused(kind: str) -> None:
    model = tiny.patched(kind)
    inputs = tiny.batch(model, kind, [[0]])
    for size in (4, 1000):
        with pytest.raises(ValueError, match=r"vision_remember: .*(prefill_chunk_size|in one prefill)"):
            tiny.generate(model, inputs, prefill_chunk_size=size)
