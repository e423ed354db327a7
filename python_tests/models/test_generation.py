"""Generation: however a prompt is run, the same tokens come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models import _llava_vr as tiny

GREEDY: dict[str, Any] = {
    "suppress_tokens": [tiny.IMAGE],
    "max_new_tokens": 6,
    "do_sample": False,
    "eos_token_id": None,
}
TEXTS = ["w1 <image> w2 w3", "w4 <image> w5 <image> w6 w7 w8", "w9 w1"]  # one image, two, none; left-padded
IMAGES = [[(40, 60)], [(70, 30), (30, 30)], []]

models = pytest.mark.parametrize(("tower", "decoder"), [(t, d) for t in tiny.TOWERS for d in tiny.DECODERS])


def picture(sample: int, place: int) -> Any:
    return tiny.image(*IMAGES[sample][place], seed=10 * sample + place)


def prompts(model: Any, samples: list[int]) -> dict[str, Tensor]:
    images = [picture(sample, place) for sample in samples for place in range(len(IMAGES[sample]))]
    return tiny.inputs(tiny.processor(model.config), [TEXTS[sample] for sample in samples], images)


def new_tokens(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    options = GREEDY | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


@models
def test_cached_is_uncached_is_a_static_cache(tower: str, decoder: str) -> None:
    model = tiny.model(tower, decoder)
    inputs = prompts(model, [0, 1, 2])
    cached = new_tokens(model, inputs)
    assert torch.equal(new_tokens(model, inputs, use_cache=False), cached)
    assert torch.equal(new_tokens(model, inputs, cache_implementation="static"), cached)


@models
def test_a_left_padded_batch_of_one_two_and_no_images_is_each_sample_alone(tower: str, decoder: str) -> None:
    model = tiny.model(tower, decoder)
    together = new_tokens(model, prompts(model, [0, 1, 2]))
    for sample in range(3):
        assert torch.equal(new_tokens(model, prompts(model, [sample]))[0], together[sample])


def test_newline_keys_and_rotary_positions_come_along() -> None:
    blocks = {"num_heads": 2, "newline_keys": True, "bidirectional_rope_theta": 1e4}
    model = tiny.model(vr_options=blocks)
    together = new_tokens(model, prompts(model, [0, 1, 2]))
    for sample in range(3):  # alone nothing is padded, so that positions start elsewhere
        assert torch.equal(new_tokens(model, prompts(model, [sample]))[0], together[sample])
    for name in ("newline_keys", "bidirectional_rope_theta"):
        without = tiny.model(vr_options={key: value for key, value in blocks.items() if key != name})
        logits = [each(**prompts(model, [0])).logits for each in (model, without)]
        assert not torch.equal(*logits), name


@models
def test_beams_of_a_batch_are_those_of_each_sample_alone(tower: str, decoder: str) -> None:
    model, beams = tiny.model(tower, decoder), {"num_beams": 2, "num_return_sequences": 2}
    together = new_tokens(model, prompts(model, [0, 1, 2]), **beams)
    for sample in range(3):
        alone = new_tokens(model, prompts(model, [sample]), **beams)
        assert torch.equal(alone, together[2 * sample : 2 * sample + 2])


def test_one_beam_of_several_sequences_is_the_greedy_answer_of_each() -> None:
    model = tiny.model()
    inputs = prompts(model, [1, 0])
    drawn = new_tokens(model, inputs, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(drawn, new_tokens(model, inputs).repeat_interleave(3, 0))


def test_generated_tokens_are_those_of_the_uncached_logits_of_forward() -> None:
    model = tiny.model()
    inputs = prompts(model, [0])
    prompt_mask, generated = inputs["attention_mask"].bool(), new_tokens(model, inputs)
    full = inputs | {"input_ids": torch.cat([inputs["input_ids"], generated], 1)}
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    with torch.no_grad():
        logits = model(**full, prompt_mask=prompt_mask).logits[:, -7:-1]
    logits[..., tiny.IMAGE] = -torch.inf
    assert torch.equal(logits.argmax(-1), generated)


def test_tokens_depend_on_the_image_and_on_the_blocks() -> None:
    model = tiny.model()
    inputs = prompts(model, [0])
    plain = tiny.model(vr_layers=[])
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        other_image = model(**(inputs | {"pixel_values": inputs["pixel_values"].flip(-1)})).logits[:, -1]
        no_blocks = plain(**inputs).logits[:, -1]
    assert not torch.allclose(logits, other_image, atol=1e-2)
    assert not torch.allclose(logits, no_blocks, atol=1e-2)


def test_looking_tokens_up_in_the_prompt_gives_the_greedy_answer() -> None:
    model = tiny.model()
    inputs = prompts(model, [0])
    assert torch.equal(new_tokens(model, inputs, prompt_lookup_num_tokens=2), new_tokens(model, inputs))


def test_tokens_that_are_guessed_ahead_are_no_prompt() -> None:
    model = tiny.model()
    inputs = prompts(model, [1])
    inputs["input_ids"][0, -1] = inputs["input_ids"][0, -3]  # what follows it there is guessed here
    asked = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": None}
    guessing: dict[str, Any] = {"prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1}
    expected, got = (model.generate(**inputs, **asked, **how).logits[0][:1] for how in ({}, guessing))
    torch.testing.assert_close(got, expected)


def test_a_model_that_would_guess_for_another_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match="the assistant_model of another"):
        new_tokens(model, prompts(model, [0]), assistant_model=tiny.model(seed=1))


def test_embeddings_in_place_of_ids_give_the_same_tokens() -> None:
    model = tiny.model()
    inputs = prompts(model, [0, 1])
    expected = new_tokens(model, inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    got = model.generate(inputs_embeds=embeddings, **inputs, **GREEDY)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_blocks_run_once_a_layer_in_the_prefill_and_never_while_decoding(use_cache: bool) -> None:
    model = tiny.model()
    calls: list[int] = []
    for layer in model.model.language_model.layers:
        if hasattr(layer, "vision_remember"):
            layer.vision_remember.register_forward_hook(lambda *_: calls.append(1))
    new_tokens(model, prompts(model, [0, 1]), use_cache=use_cache)
    assert len(calls) == len(model.config.vr_layers) * (1 if use_cache else GREEDY["max_new_tokens"])


def test_blocks_do_not_run_for_text_alone() -> None:
    model = tiny.model()
    model.model.language_model.layers[0].vision_remember.register_forward_hook(lambda *_: pytest.fail("a block ran"))
    new_tokens(model, prompts(model, [2]))


def test_a_second_question_is_answered_as_by_one_prefill_of_the_dialogue() -> None:
    model = tiny.model()
    first = prompts(model, [0])
    dialogue = torch.cat([first["input_ids"], new_tokens(model, first), torch.tensor([[5, 6]])], 1)
    second = first | {"input_ids": dialogue, "attention_mask": torch.ones_like(dialogue)}
    assert torch.equal(new_tokens(model, second), new_tokens(model, second, use_cache=False))


def kept_cache(model: Any) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A cache after the first answer, the dialogue with a second question, and that question's pixels."""
    first = prompts(model, [0])
    answer = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    dialogue = torch.cat([answer.sequences, torch.tensor([[5, 6]])], 1)
    pixels = {name: first[name] for name in ("pixel_values", "image_sizes")}
    return answer.past_key_values, {"input_ids": dialogue, "attention_mask": torch.ones_like(dialogue)}, pixels


def test_without_a_guide_a_kept_cache_goes_on_as_a_fresh_prefill_would() -> None:
    model = tiny.model(vr_text_guided=False)
    cache, dialogue, pixels = kept_cache(model)
    assert torch.equal(new_tokens(model, dialogue, past_key_values=cache), new_tokens(model, dialogue | pixels))


def test_with_a_guide_a_kept_cache_under_a_new_question_is_refused() -> None:
    model = tiny.model()
    cache, dialogue, _ = kept_cache(model)
    with pytest.raises(ValueError, match=r"a cache of 22 tokens with images.*the whole dialogue in one prefill"):
        new_tokens(model, dialogue, past_key_values=cache)


def test_a_kept_cache_of_text_alone_goes_on() -> None:
    model = tiny.model()
    first = prompts(model, [2])
    answer = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    dialogue = torch.cat([answer.sequences, torch.tensor([[5, 6]])], 1)
    second = {"input_ids": dialogue, "attention_mask": torch.ones_like(dialogue)}
    assert torch.equal(new_tokens(model, second, past_key_values=answer.past_key_values), new_tokens(model, second))
