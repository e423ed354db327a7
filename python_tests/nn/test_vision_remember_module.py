"""The block's life as a module: names, files, copies, dtypes, devices, folding, the papers' sizes."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from python_tests.nn._vision_batch import batch
from python_tests.nn.test_vision_remember import block_of, config_of, run
from vr_kernels import VisionRemember, VisionRememberConfig

FULL = {"bias": True, "bidirectional_bias": True, "query_norm": "layer", "bidirectional_norm": "layer",
        "window": (2, 3), "window_position": "learned", "residual": "gate", "expansion": "mlp"}  # fmt: skip


def test_state_dict_names_are_stable() -> None:
    assert list(block_of().state_dict()) == [
        "cross_attention.query_norm.weight",
        "cross_attention.expansion.weight",
        "cross_attention.attention.key_weight",
        "cross_attention.attention.value_weight",
        "cross_attention.attention.norm_weight",
        "cross_attention.attention.norm_bias",
        "cross_attention.attention.query_proj.weight",
        "cross_attention.attention.out_proj.weight",
        "cross_attention.contraction.weight",
        "bidirectional.norm_weight",
        "bidirectional.qkv_proj.weight",
        "bidirectional.out_proj.weight",
    ]
    added = set(block_of(**FULL).state_dict()) - set(block_of().state_dict())
    assert added == {
        "cross_attention.gate",
        "cross_attention.window_position",
        "cross_attention.query_norm.bias",
        "cross_attention.expansion.0.weight",
        "cross_attention.expansion.0.bias",
        "cross_attention.expansion.2.weight",
        "cross_attention.expansion.2.bias",
        "cross_attention.attention.query_proj.bias",
        "cross_attention.attention.key_bias",
        "cross_attention.attention.value_bias",
        "cross_attention.attention.out_proj.bias",
        "cross_attention.contraction.bias",
        "bidirectional.norm_bias",
        "bidirectional.qkv_proj.bias",
        "bidirectional.out_proj.bias",
    }
    literal = block_of(literal=True, num_heads=None, layers=("cross_attention",), text_guide="none")
    assert list(literal.state_dict()) == [
        "cross_attention.query_norm.weight",
        "cross_attention.expansion.weight",
        "cross_attention.attention.norm_weight",
        "cross_attention.attention.norm_bias",
        "cross_attention.contraction.weight",
    ]


@pytest.mark.parametrize("options", [{}, FULL], ids=["defaults", "full"])
def test_it_is_saved_and_loaded_bit_for_bit(options: dict[str, object]) -> None:
    block, inputs = block_of(**options), batch()
    file = io.BytesIO()
    torch.save({"config": block.config.to_dict(), "state": block.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    other = VisionRemember(VisionRememberConfig.from_dict(saved["config"]), dtype=torch.float64)
    other.load_state_dict(saved["state"], strict=True)
    assert torch.equal(run(other, inputs), run(block, inputs))


def test_a_deep_copy_is_its_own() -> None:
    block, inputs = block_of(), batch()
    expected = run(block, inputs)
    twin = copy.deepcopy(block)
    assert torch.equal(run(twin, inputs), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(run(block, inputs), expected)


@pytest.mark.parametrize("options", [{}, FULL], ids=["defaults", "full"])
def test_it_is_built_on_the_meta_device_and_starts_there_as_anywhere(options: dict[str, object]) -> None:
    block = VisionRemember(config_of(**options), device="meta", dtype=torch.float64)
    assert {parameter.device.type for parameter in block.parameters()} == {"meta"}
    block.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    block.reset_parameters()
    inputs = batch()
    assert torch.equal(run(block, inputs), inputs.hidden_states)
    torch.manual_seed(0)
    block.reset_parameters()
    fresh = VisionRemember(config_of(**options), dtype=torch.float64)
    torch.manual_seed(0)
    fresh.reset_parameters()
    for (name, parameter), other in zip(block.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_shapes_are_known_on_the_meta_device() -> None:
    block, inputs = VisionRemember(config_of(), device="meta"), batch().to(torch.float32)
    levels = [level.to("meta") for level in inputs.levels]
    out = block(inputs.hidden_states.to("meta"), inputs.vision_map.to("meta"), levels,
                text_mask=inputs.text_mask.to("meta"))  # fmt: skip
    assert (out.device.type, out.shape) == ("meta", inputs.hidden_states.shape)


@pytest.mark.parametrize("options", [{}, FULL, {"saliency": "value"}], ids=["defaults", "full", "saliency"])
def test_folding_changes_the_function_by_rounding_only(options: dict[str, object]) -> None:
    block, inputs = block_of(**options), batch()
    expected = run(block, inputs)
    assert block.fold_() is block
    torch.testing.assert_close(run(block, inputs), expected, rtol=1e-10, atol=1e-10)


def test_the_papers_block_has_the_parameters_that_the_paper_counts() -> None:
    # v2, Table 5d: two blocks cost 180 MB in bfloat16.
    block = VisionRemember(VisionRememberConfig.preset("v2"), device="meta", dtype=torch.bfloat16)
    matrices = 2 * 896 * 3072 + 4 * 3072**2 + 4 * 896**2
    norms = 896 + 2 * 3072 + 896
    assert sum(parameter.numel() for parameter in block.parameters()) == matrices + norms
    assert 175 < 2 * 2 * matrices / 2**20 < 180


def test_repr_shows_the_configuration() -> None:
    shown = repr(block_of(saliency="value", residual="gate"))
    assert "layers=('cross_attention', 'bidirectional'), text_guide='max'" in shown
    assert "12, (6, 10), interaction='local', residual='gate', saliency='value', window_position='none'" in shown
