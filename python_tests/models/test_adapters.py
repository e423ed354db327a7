"""PEFT: adapters on the decoder and on the blocks, trained, saved, loaded and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models import _llava_vr as tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks

TARGETS = {
    "decoder": ["q_proj", "v_proj"],
    "blocks": ["expansion", "contraction", "query_proj", "out_proj", "qkv_proj"],
    "all Linears": "all-linear",
}


def adapted(model: Any, targets: Any, **options: Any) -> Any:
    """Adapters whose second matrix is no longer zero, so that they show."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, **options))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


def inputs_of(model: Any) -> dict[str, Tensor]:
    return tiny.inputs(tiny.processor(model.config), ["w1 <image> w2 w3", "w4 w5"], [tiny.image()])


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_show_load_back_and_merge(targets: str, tmp_path: Path) -> None:
    model = tiny.model()
    inputs = inputs_of(model)
    plain = logits(model, inputs)
    wrapped = adapted(model, TARGETS[targets])
    expected = logits(wrapped, inputs)
    assert not torch.allclose(expected, plain, atol=1e-3)
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.model(), tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), expected)
    merged = loaded.merge_and_unload()
    assert merged.state_dict().keys() == tiny.model().state_dict().keys()
    torch.testing.assert_close(logits(merged, inputs), expected, rtol=1e-4, atol=1e-4)


def test_whole_blocks_train_beside_adapters(tmp_path: Path) -> None:
    """modules_to_save puts a copy of a block in its place: the hook must find the copy."""
    model = tiny.model()
    inputs = inputs_of(model)
    wrapped = adapted(model, ["q_proj", "v_proj"], modules_to_save=["vision_remember"])
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    blocks = {name for name in trained if "vision_remember" in name}
    assert blocks
    assert all("modules_to_save" in name for name in blocks)
    before = logits(wrapped, inputs)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    wrapped.train()(**inputs, labels=labels).loss.backward()
    assert all(parameter.grad is not None for name, parameter in wrapped.named_parameters() if name in blocks)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if name in blocks:
                parameter.sub_(0.1 * parameter.grad)
    expected = logits(wrapped.eval(), inputs)
    assert not torch.equal(expected, before)
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.model(), tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), expected)


def test_an_adapted_model_generates_as_its_merged_one() -> None:
    wrapped = adapted(tiny.model(), TARGETS["all Linears"])
    inputs = inputs_of(wrapped)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [tiny.IMAGE]}
    expected = wrapped.generate(**inputs, **options)
    assert torch.equal(wrapped.merge_and_unload().generate(**inputs, **options), expected)
