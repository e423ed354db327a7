"""Blocks in a folder of their own, and in PEFT's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels import apply_vision_remember, load_vision_remember, save_vision_remember
from vr_kernels.integrations import peft_modules_to_save
from vr_kernels.nn import VisionRemember

FILE = "vision_remember.safetensors"

# PEFT reads an attribute that transformers 5.23 has renamed.
peft_warns = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_saved_blocks_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = tiny.patched(kind, neighborhood=(1, 0), bidirectional=False, window_position="learned", residual="gate")
    save_vision_remember(model, tmp_path / "new" / "folder")
    again = load_vision_remember(tiny.model(kind), tmp_path / "new" / "folder")
    inputs = tiny.batch(model, kind, [[0], []])
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_blocks_that_are_there_take_the_weights(tmp_path: Path) -> None:
    model, fresh = tiny.patched("llava"), tiny.patched("llava", random=False)
    save_vision_remember(model, tmp_path)
    block = tiny.blocks(fresh)[0]
    load_vision_remember(fresh, tmp_path)
    assert tiny.blocks(fresh)[0] is block
    inputs = tiny.batch(model, "llava", [[0]])
    assert torch.equal(fresh(**inputs).logits, model(**inputs).logits)


def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path: Path) -> None:
    save_vision_remember(tiny.patched("llava"), tmp_path)
    with pytest.raises(ValueError, match="of type 'llava', this one is 'llava_next'"):
        load_vision_remember(tiny.model("llava_next"), tmp_path)
    with pytest.raises(ValueError, match=r"this model's blocks are .*layers=\(2,\)"):
        load_vision_remember(tiny.patched("llava", layers=(2,)), tmp_path)
    wider = tiny.model("llava")
    wider.model.config.text_config.hidden_size = 64
    with pytest.raises(ValueError, match="hidden_size=64"):
        load_vision_remember(wider, tmp_path)
    assert not tiny.blocks(wider)
    with pytest.raises(FileNotFoundError, match=FILE):
        load_vision_remember(tiny.model("llava"), tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="the model has no blocks"):
        save_vision_remember(tiny.model("llava"), tmp_path)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="not written by save_vision_remember"):
        load_vision_remember(tiny.model("llava"), tmp_path)


def test_folded_blocks_are_not_written(tmp_path: Path) -> None:
    model = tiny.patched("llava")
    tiny.blocks(model)[0].fold_()
    with pytest.raises(ValueError, match="before fold_"):
        save_vision_remember(model, tmp_path)


@pytest.mark.parametrize("change", ["folded", "adapted"])
def test_blocks_that_are_no_longer_new_ones_are_refused_before_a_weight_is_written(change: str, tmp_path: Path) -> None:
    save_vision_remember(tiny.patched("llava"), tmp_path)
    model = tiny.patched("llava", random=False)
    if change == "folded":
        tiny.blocks(model)[1].fold_()
    else:
        peft = pytest.importorskip("peft")
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=r".*layers\.2\..*contraction"), model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"load_vision_remember: the blocks have the weights 3\..* before fold_\(\)"):
        load_vision_remember(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_that_is_cut_off_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.patched("llava", random=False)
    save_vision_remember(model, tmp_path)
    written = (tmp_path / FILE).read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    tiny.randomise_blocks(model)
    with pytest.raises(OSError, match="disk is full"):
        save_vision_remember(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == written


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_the_file_has_the_rights_that_the_umask_allows(umask: int, tmp_path: Path) -> None:
    model, before = tiny.patched("llava", random=False), os.umask(umask)
    try:
        save_vision_remember(model, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o666 & ~umask


def adapted(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False, **options)
    return peft.get_peft_model(model, config).eval()


@peft_warns
@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_peft_trains_saves_loads_and_merges_the_blocks(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = tiny.patched(kind, random=False)
    model = adapted(base, modules_to_save=peft_modules_to_save(base))
    inputs = tiny.batch(model, kind, [[0], []])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model(**inputs).logits
    for _ in range(2):  # the first step moves the zeros alone
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model(**inputs).logits, before)
    trained, tokens = model(**inputs).logits, tiny.generate(model, inputs)

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny.patched(kind, random=False), tmp_path).eval()
    assert torch.equal(again(**inputs).logits, trained)
    assert torch.equal(tiny.generate(again, inputs), tokens)

    save_vision_remember(model, tmp_path)
    merged = model.merge_and_unload()
    assert [type(block) for block in tiny.blocks(merged)] == [VisionRemember] * len(tiny.LAYERS)
    torch.testing.assert_close(merged(**inputs).logits, trained, rtol=1e-4, atol=1e-4)
    saved = tiny.blocks(load_vision_remember(tiny.model(kind), tmp_path))
    for block, kept in zip(tiny.blocks(merged), saved, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(block.parameters(), kept.parameters(), strict=True))


@peft_warns
@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl"])
def test_a_peft_model_can_be_patched(kind: str) -> None:
    model = adapted(tiny.model(kind))
    inputs = tiny.batch(model, kind, [[0], []])
    before, tokens = model(**inputs).logits, tiny.generate(model, inputs)
    assert apply_vision_remember(model, layers=tiny.LAYERS, levels=(1, 2), num_heads=4) is model
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(tiny.generate(model, inputs), tokens)
    tiny.randomise_blocks(model)
    changed = tiny.generate(model, inputs)
    assert torch.equal(tiny.generate(model, inputs, use_cache=False), changed)
    assert not torch.equal(model(**inputs).logits, before)
