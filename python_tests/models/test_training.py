"""Training: every parameter has its gradient, and recomputation gives the same ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models import _llava_vr as tiny
from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration

towers = pytest.mark.parametrize("tower", tiny.TOWERS)


def batch(model: Any, texts: list[str], images: int) -> dict[str, Tensor]:
    inputs = tiny.inputs(tiny.processor(model.config), texts, [tiny.image(seed=i) for i in range(images)])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    return inputs | {"labels": labels}


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("position", ["after", "before"])
@towers
def test_checkpointed_gradients_are_equal(tower: str, position: str, use_reentrant: bool) -> None:
    """Under reentrant checkpointing of a frozen tower, as its gradients would be cut."""
    model = tiny.model(tower, vr_position=position, vr_saliency="value").train()
    model.model.vision_tower.requires_grad_(not use_reentrant)
    inputs = batch(model, ["w1 <image> w2 w3 w4", "w5 w6 w7 w8"], images=1)
    expected = gradients(model, inputs)
    if use_reentrant:
        model.enable_input_require_grads()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # 5.20's only name
    enable({"use_reentrant": use_reentrant})
    calls: list[int] = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    got = gradients(model, inputs)
    assert len(calls) == 2  # it was recomputed
    assert {name for name, g in got.items() if g is None} == {name for name, g in expected.items() if g is None}
    for name, gradient in got.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@towers
def test_images_give_a_gradient_to_everything_that_is_read(tower: str) -> None:
    model = tiny.model(tower).train()
    got = gradients(model, batch(model, ["w1 <image> w2 w3 w4", "w5 w6 w7 w8"], images=1))
    unread = ("vision_tower.encoder.layers.3.", "vision_tower.post_layernorm", "vision_tower.head.")
    for name, gradient in got.items():
        if not any(part in name for part in unread):
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.count_nonzero() > 0 or "k_proj.bias" in name or name.endswith("key_bias"), name


BLOCKS: dict[str, dict[str, Any]] = {
    "none": {"vr_layers": []},
    "local": {},
    "global": {"vr_interaction": "global"},
    "deformable": {"vr_interaction": "deformable"},
    "learned": {"vr_options": {"num_heads": 2, "window": [3, 3], "window_position": "learned"}},
}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("form", ["ids", "embeddings"])
def test_text_alone_gives_a_gradient_of_zero_to_what_images_need(form: str, blocks: str) -> None:
    """Data-parallel training waits for every parameter on every rank."""
    model = tiny.model(**BLOCKS[blocks]).train()
    inputs = batch(model, ["w1 w2 w3 w4"], images=0)
    plain = model(**inputs).loss
    if form == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    for name, gradient in gradients(model, inputs).items():
        if "vision_tower" not in name:
            assert gradient is not None, name
            if "vision_remember" in name or "projector" in name or "newline" in name:
                assert gradient.count_nonzero() == 0, name
    torch.testing.assert_close(model.eval()(**inputs).loss, plain)


def test_frozen_towers_keep_no_graph() -> None:
    model = tiny.model().train()
    model.model.vision_tower.requires_grad_(False)
    got = gradients(model, batch(model, ["w1 <image> w2 w3 w4"], images=1))
    assert {name for name, gradient in got.items() if gradient is None} == {
        name for name in got if "vision_tower" in name
    }


def test_a_new_model_learns_through_blocks_that_start_at_zero() -> None:
    model = LlavaVRForConditionalGeneration(tiny.config()).train()
    inputs = batch(model, ["w1 <image> w2 w3 w4"], images=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    for layer in (0, 3):
        block = model.model.language_model.layers[layer].vision_remember
        assert block.cross_attention.contraction.weight.count_nonzero() > 0
        assert block.bidirectional.out_proj.weight.count_nonzero() > 0


def test_the_loss_in_bfloat16_autocast_is_near_that_in_float32() -> None:
    model = tiny.model().train()
    inputs = batch(model, ["w1 <image> w2 w3 w4"], images=1)
    exact = float(model(**inputs).loss.detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    assert abs(float(loss.detach()) - exact) < 0.05 * exact
