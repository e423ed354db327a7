"""Saved models load back bit for bit, and what a checkpoint lacks starts as it should."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from python_tests.models import _llava_vr as tiny
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRModel, LlavaVRProcessor

towers = pytest.mark.parametrize("tower", tiny.TOWERS)


def inputs_of(model: Any) -> dict[str, Tensor]:
    return tiny.inputs(tiny.processor(model.config), ["w1 <image> w2", "w3"], [tiny.image()])


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@towers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_saved_in_shards_loads_bit_for_bit(tower: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.model(tower, dtype=dtype)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is LlavaVRForConditionalGeneration
    assert_same(model, loaded)
    inputs = inputs_of(model)
    assert torch.equal(logits(model, inputs), logits(loaded, inputs))


def test_the_files_hold_the_names_of_the_state_dict(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_the_names_of_the_state_dict_are_stable() -> None:
    names = [name for name in tiny.model("clip").state_dict() if not name.startswith("model.vision_tower.")]
    block = "model.language_model.layers.{}.vision_remember."
    layer = [
        "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias",
        "self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
        "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
    ]  # fmt: skip
    expected = {f"model.language_model.layers.{i}.{name}" for i in range(5) for name in layer}
    expected |= {
        block.format(i) + name
        for i in (0, 3)
        for name in (
            "cross_attention.query_norm.weight", "cross_attention.expansion.weight",
            "cross_attention.attention.key_weight", "cross_attention.attention.value_weight",
            "cross_attention.attention.norm_weight", "cross_attention.attention.norm_bias",
            "cross_attention.attention.query_proj.weight", "cross_attention.attention.out_proj.weight",
            "cross_attention.contraction.weight",
            "bidirectional.norm_weight", "bidirectional.qkv_proj.weight", "bidirectional.out_proj.weight",
        )
    }  # fmt: skip
    expected |= {f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    expected |= {
        "model.image_newline", "model.language_model.embed_tokens.weight", "model.language_model.norm.weight",
        "lm_head.weight",
    }  # fmt: skip
    assert set(names) == expected


def test_a_config_loads_back_equal(tmp_path: Path) -> None:
    config = tiny.config("clip", vr_interaction="global", vr_saliency="value", vr_position="before")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LlavaVRConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert loaded.vision_remember == config.vision_remember


def test_the_base_model_loads_from_the_whole(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LlavaVRModel
    assert_same(model.model, base)


@pytest.mark.parametrize("pinpoints", [tiny.PINPOINTS, []], ids=["anyres", "one tile"])
@towers
def test_a_processor_loads_back_and_makes_the_same_inputs(tower: str, pinpoints: list[Any], tmp_path: Path) -> None:
    config = tiny.config(tower, image_grid_pinpoints=pinpoints)
    processor = tiny.processor(config)
    processor.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LlavaVRProcessor
    assert type(loaded.image_processor) is type(processor.image_processor)
    texts, images = ["w1 <image> w2", "w3"], [tiny.image(70, 30)]
    first, second = tiny.inputs(processor, texts, images), tiny.inputs(loaded, texts, images)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def offloaded(folder: Path, layers: tuple[int, ...]) -> Any:
    """The model with these decoder layers (from 0) on disk."""
    parts = ["vision_tower", "multi_modal_projector", "image_newline", "language_model.embed_tokens"]
    parts += ["language_model.norm", "language_model.rotary_emb"]
    device_map = {"lm_head": "cpu"} | {f"model.{part}": "cpu" for part in parts}
    device_map |= {f"model.language_model.layers.{i}": "disk" if i in layers else "cpu" for i in range(5)}
    return LlavaVRForConditionalGeneration.from_pretrained(
        folder / "model", device_map=device_map, offload_folder=folder / "offload"
    )


@pytest.mark.filterwarnings("ignore:The following device_map keys:UserWarning")  # of parameters outside submodules
def test_layers_on_disk_and_on_the_cpu_give_the_same_logits(tmp_path: Path) -> None:
    model = tiny.model(vr_layers=[1, 4])
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    inputs = inputs_of(model)
    on_cpu = LlavaVRForConditionalGeneration.from_pretrained(tmp_path / "model", device_map="cpu")
    assert torch.equal(logits(model, inputs), logits(on_cpu, inputs))
    on_disk = offloaded(tmp_path, (1, 2))
    assert on_disk.model.language_model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(logits(model, inputs), logits(on_disk, inputs))


@pytest.mark.filterwarnings("ignore:The following device_map keys:UserWarning")
def test_a_block_on_disk_reads_its_own_weights(tmp_path: Path) -> None:
    """accelerate loads those of one module at a time, when it is called."""
    model = tiny.model(vr_layers=[1, 4])
    model.save_pretrained(tmp_path / "model")
    inputs = inputs_of(model)
    torch.testing.assert_close(logits(offloaded(tmp_path, (0,)), inputs), logits(model, inputs))


def test_no_device_boundary_runs_through_a_block() -> None:
    assert "VisionRemember" in tiny.model()._no_split_modules


# What a checkpoint lacks.


def without(model: Any, part: str, folder: Path) -> None:
    """The model's files without the tensors whose name holds ``part``."""
    kept = {name: tensor for name, tensor in model.state_dict().items() if part not in name}
    model.save_pretrained(folder, state_dict=kept)


def test_a_checkpoint_without_blocks_gets_blocks_that_change_nothing(tmp_path: Path) -> None:
    baseline = tiny.model(vr_layers=[])
    baseline.save_pretrained(tmp_path)
    loaded, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, vr_layers=[1, 4], output_loading_info=True)
    assert info["missing_keys"] == {name for name in loaded.state_dict() if ".vision_remember." in name}
    inputs = inputs_of(baseline)
    assert torch.equal(logits(loaded, inputs), logits(baseline, inputs))
    for name, parameter in loaded.named_parameters():
        if ".vision_remember." in name:
            last = "contraction" in name or "bidirectional.out_proj" in name or "norm_bias" in name
            assert parameter.isfinite().all()
            assert (parameter == 0).all() == last, name


@pytest.mark.parametrize("part", ["contraction", "norm_weight", "layers.3.vision_remember", "linear_2", "newline"])
def test_loaded_weights_are_not_made_anew_where_others_are_missing(part: str, tmp_path: Path) -> None:
    model = tiny.model()
    without(model, part, tmp_path)
    loaded, info = LlavaVRForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if part in name}
    for name, tensor in model.state_dict().items():
        if part not in name:
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].isfinite().all()


def test_a_model_on_the_meta_device_takes_loaded_weights() -> None:
    model = tiny.model()
    with torch.device("meta"):
        empty = LlavaVRForConditionalGeneration(tiny.config())
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.state_dict().keys() == model.state_dict().keys()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_same(empty, model)


def test_a_copied_model_runs_its_own_blocks() -> None:
    model = tiny.model()
    twin, inputs = copy.deepcopy(model), inputs_of(model)
    expected = logits(model, inputs)
    assert torch.equal(logits(twin, inputs), expected)
    with torch.no_grad():
        twin.model.language_model.layers[0].vision_remember.cross_attention.contraction.weight.zero_()
    assert torch.equal(logits(model, inputs), expected)
    assert not torch.equal(logits(twin, inputs), expected)


def test_fields_given_at_loading_are_checked_with_the_others(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    assert LlavaVRConfig.from_pretrained(tmp_path, vr_window=[2, 2]).token_grid == (3, 3)
    with pytest.raises(ValueError, match=r"vr_levels has 9; an encoder of 4 blocks has hidden_states 0 to 4"):
        LlavaVRConfig.from_pretrained(tmp_path, vr_levels=[9])


def test_a_saved_config_says_everything(tmp_path: Path) -> None:
    tiny.config(vr_layers=[2]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "llava_vr"
    assert {name: value for name, value in written.items() if name.startswith(("vr_", "projector"))} == {
        "projector_type": "pool", "projector_options": {}, "projector_hidden_act": "gelu",
        "vr_window": [3, 3], "vr_layers": [2], "vr_position": "after", "vr_levels": [2, 3],
        "vr_interaction": "local", "vr_bidirectional": True, "vr_text_guided": True, "vr_saliency": "none",
        "vr_saliency_level": None, "vr_options": {"num_heads": 2},
    }  # fmt: skip


def test_weights_that_wait_on_the_cpu_or_on_disk_are_fetched_where_they_are_read(tmp_path: Path) -> None:
    model = tiny.model("clip")  # torch reads past the modules in SigLIP's pooling
    inputs = tiny.inputs(tiny.processor(model.config), ["w1 <image> w2"], [tiny.image()])
    with torch.no_grad():
        expected = model(**inputs).logits
        for offload in (accelerate.cpu_offload, partial(accelerate.disk_offload, offload_dir=tmp_path)):
            offloaded = offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
            assert any(parameter.is_meta for parameter in offloaded.parameters())
            torch.testing.assert_close(offloaded(**inputs).logits, expected)
