"""What is recorded is what the blocks did: where they looked, and how much each feature weighed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from python_tests.models import _llava_vr as tiny
from vr_kernels.integrations import record_window_attention
from vr_kernels.nn import VisionRemember, VisionTokenMap

TEXTS = ["w1 <image> w2 w3", "w4 w5 <image> w6"]


def prefill(model: Any) -> Tensor:
    sizes = [(40, 60), (24, 24)]
    images = [tiny.image(*size, seed=number) for number, size in enumerate(sizes)]
    inputs = tiny.inputs(tiny.processor(model.config), TEXTS, images)
    with torch.no_grad():
        return model(**inputs).logits  # type: ignore[no-any-return]


def layer_calls(model: Any) -> dict[int, tuple[VisionRemember, list[Any]]]:
    """Each block's cross-attention, and a list that gets the query, levels and output of its inner attention."""
    calls: dict[int, tuple[VisionRemember, list[Any]]] = {}
    for number in model.config.vr_layers:
        block = model.model.language_model.layers[number - 1].vision_remember
        seen: list[Any] = []
        block.cross_attention.attention.register_forward_hook(
            lambda _, args, output, seen=seen: seen.append((*args, output))
        )
        calls[number] = block, seen
    return calls


@pytest.mark.parametrize("image_grid_pinpoints", [[], tiny.PINPOINTS], ids=["whole", "anyres"])
def test_the_weights_make_the_attention_s_output(image_grid_pinpoints: list[list[int]]) -> None:
    plain = {"num_heads": 2, "feature_norm": "none"}
    model = tiny.model(image_grid_pinpoints=image_grid_pinpoints, vr_options=plain)
    with record_window_attention(model) as recorded:
        calls = layer_calls(model)  # behind the recorder's hooks, where outputs are those of any call
        prefill(model)
    assert sorted(recorded) == [1, 4]
    for number, (block, [(_, levels, output)]) in calls.items():
        weights, index = recorded[number].weights, recorded[number].vision_map.window_index
        attention: Any = block.cross_attention.attention
        table = torch.cat([level.reshape(-1, level.shape[-1]) for level in levels], 1)  # (M, C)
        values = (table @ attention.value_weight.T).unflatten(1, (attention.num_heads, -1))  # (M, h, d)
        taken = values[index.clamp_min(0).long()] * (index >= 0)[..., None, None]  # (V, K, h, d)
        expected = torch.einsum("vhk,vkhd->vhd", weights, taken).flatten(1)
        if attention.value_bias is not None:
            expected = expected + attention.value_bias
        expected = attention.out_proj(expected)
        torch.testing.assert_close(output.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("image_grid_pinpoints", [[], tiny.PINPOINTS], ids=["whole", "anyres"])
def test_recording_changes_no_more_than_rounding_and_leaves_no_trace(image_grid_pinpoints: list[list[int]]) -> None:
    model = tiny.model(image_grid_pinpoints=image_grid_pinpoints)
    before = prefill(model)
    with record_window_attention(model):
        torch.testing.assert_close(prefill(model), before)
    assert torch.equal(prefill(model), before)
    assert not any(module._forward_hooks for module in model.modules() if "Attention" in type(module).__name__)


def test_an_error_inside_leaves_no_trace_either() -> None:
    model = tiny.model()
    with pytest.raises(RuntimeError, match="stop"), record_window_attention(model):
        raise RuntimeError("stop")
    assert not any(
        module._forward_pre_hooks for module in model.model.language_model.layers[0].vision_remember.modules()
    )


def test_a_token_s_weights_lie_over_its_window() -> None:
    model = tiny.model(image_grid_pinpoints=[])
    with record_window_attention(model) as recorded:
        prefill(model)
    record = recorded[1]
    over = record.over_features(5)  # of two images with 2x2 tokens each: row 0, column 1 of the second
    assert over.shape == (2, 6, 6)
    outside = over.clone()
    outside[1, :3, 3:] = 0
    assert outside.abs().max() == 0
    torch.testing.assert_close(over[1, :3, 3:].flatten(), record.weights[5].mean(0))
    torch.testing.assert_close(record.over_features().sum(), torch.tensor(8.0))


def test_later_prefills_take_the_place_of_earlier_ones() -> None:
    model = tiny.model(image_grid_pinpoints=[])
    with record_window_attention(model) as recorded:
        assert recorded == {}
        prefill(model)
        first = recorded[4]
        prefill(model)
    assert recorded[4] is not first
    assert isinstance(recorded[4].vision_map, VisionTokenMap)


@pytest.mark.parametrize("changes", [{"vr_layers": []}, {"vr_interaction": "global"}])
def test_a_model_without_windows_is_refused(changes: dict[str, Any]) -> None:
    with (
        pytest.raises(ValueError, match="record_window_attention: model has no Vision Remember block with local"),
        record_window_attention(tiny.model(**changes)),
    ):
        pass


def test_what_is_no_model_is_named() -> None:
    with (
        pytest.raises(TypeError, match=r"^record_window_attention: model is None; it must be a torch\.nn\.Module$"),
        record_window_attention(None),  # type: ignore[arg-type]
    ):
        pass


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_of_several_adapters_the_active_one_s_block_is_recorded() -> None:
    model = tiny.model(image_grid_pinpoints=[])
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["vision_remember"])
    adapted = get_peft_model(model, config, adapter_name="one")
    adapted.add_adapter("two", config)
    for name in ("one", "two"):
        adapted.set_adapter(name)
        with record_window_attention(adapted) as recorded:
            prefill(adapted)
        assert sorted(recorded) == [1, 4]
