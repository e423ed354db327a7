"""The block: its function, its start, the rows that it leaves alone, its life as a module."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.nn import _vision_remember_oracle as oracle
from python_tests.nn._vision_batch import HIDDEN, WIDTHS, Batch, batch
from vr_kernels import VisionRemember, VisionRememberConfig, VisionTokenMap


def config_of(**options: Any) -> VisionRememberConfig:
    fixed = {"hidden_size": HIDDEN, "num_attention_heads": 3, "feature_dims": WIDTHS, "num_heads": 4}
    return VisionRememberConfig(**(fixed | options))


def block_of(dtype: torch.dtype = torch.float64, **options: Any) -> VisionRemember:
    """No parameter at a value that hides a fault: no zero, no identity."""
    block = VisionRemember(config_of(**options), dtype=dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return block


def run(block: VisionRemember, inputs: Batch, *, text: bool = True) -> Tensor:
    crossing = block.cross_attention is not None
    return block(
        inputs.hidden_states,
        inputs.vision_map,
        inputs.levels if crossing else None,
        saliency=inputs.saliency if crossing and block.config.saliency != "none" else None,
        text_mask=inputs.text_mask if text and block.config.text_guide != "none" else None,
        position_ids=inputs.position_ids if block.config.bidirectional_rope_theta is not None else None,
    )


LAYERS = [("cross_attention", "bidirectional"), ("bidirectional", "cross_attention")]
ALONE = [("cross_attention",), ("bidirectional",)]

# Every field of the configuration away from its default, those of the cross-attention for its own tests again.
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "reversed": {"layers": LAYERS[1]},
    "cross-attention alone": {"layers": ALONE[0], "text_guide": "none"},
    "bidirectional alone": {"layers": ALONE[1]},
    "other heads": {"num_attention_heads": 6},
    "own heads": {"num_heads": 2, "head_dim": 7},
    "mean guide": {"text_guide": "mean"},
    "no guide": {"text_guide": "none"},
    "bidirectional LayerNorm": {"bidirectional_norm": "layer"},
    "bidirectional without norm": {"bidirectional_norm": "none"},
    "bidirectional bias": {"bidirectional_bias": True},
    "positions": {"bidirectional_rope_theta": 50.0},
    "newlines as keys": {"newline_keys": True},
    "newlines as keys at their positions": {"newline_keys": True, "bidirectional_rope_theta": 50.0},
    "literal": {"literal": True, "num_heads": None},
    "mlp": {"expansion": "mlp"},
    "query norm": {"query_norm": "layer"},
    "eps": {"norm_eps": 0.5},
    "eps of LayerNorms": {"norm_eps": 0.5, "query_norm": "layer", "bidirectional_norm": "layer"},
    "feature norm": {"feature_norm": "all"},
    "bias": {"bias": True},
    "position": {"window": (2, 3), "window_position": "learned"},
    "saliency": {"saliency": "value"},
    "saliency on features": {"saliency": "feature"},
    "normal": {"residual": "normal"},
    "gate": {"residual": "gate"},
    "whole windows": {"ragged_windows": "reject"},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@options
@pytest.mark.parametrize("text", [True, False])
def test_it_is_the_formula_token_by_token(options: dict[str, Any], text: bool) -> None:
    block, inputs = block_of(**options), batch()
    state = {name: value.detach() for name, value in block.state_dict().items()}
    expected = oracle.vision_remember(state, block.config, inputs, text=text)
    torch.testing.assert_close(run(block, inputs, text=text), expected, rtol=1e-10, atol=1e-10)


def test_every_field_has_its_case() -> None:
    # Those that "own head width" below, or a model of another size, shows.
    elsewhere = {"hidden_size", "feature_dims", "interaction", "bidirectional_head_dim"}
    assert {name for case in OPTIONS.values() for name in case} | elsewhere == {
        field.name for field in dataclasses.fields(VisionRememberConfig)
    }


def test_the_bidirectional_layer_may_have_heads_of_another_width() -> None:
    block, inputs = block_of(layers=ALONE[1], bidirectional_head_dim=5), batch()
    state = {name: value.detach() for name, value in block.state_dict().items()}
    assert state["bidirectional.qkv_proj.weight"].shape == (45, HIDDEN)
    expected = oracle.vision_remember(state, block.config, inputs)
    torch.testing.assert_close(run(block, inputs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("feature_grid", [(4, 9), (5, 7)], ids=str)
def test_images_of_several_sizes_are_each_alone(feature_grid: tuple[int, int], unpad: bool) -> None:
    # Image by image, in samples of their own, in a sequence that holds nothing else.
    block, inputs = block_of(saliency="value"), batch(feature_grid, unpad=unpad)
    together = run(block, inputs)
    for image in range(3):
        tokens = [token for token in inputs.tokens if token.image == image]
        sample, first, tiles = tokens[0].sample, tokens[0].tile, len({token.tile for token in tokens})
        text = inputs.hidden_states[sample][inputs.text_mask[sample]]
        slots = torch.full((1, len(tokens) + len(text), 3), -1)
        slots[0, : len(tokens)] = torch.tensor([[t.tile - first, t.row, t.column] for t in tokens])
        vision_map = VisionTokenMap.from_slots(slots, grid=(2, 3), feature_grid=feature_grid, tiles=[tiles])
        vision = torch.stack([inputs.hidden_states[t.sample, t.slot] for t in tokens])
        alone = block(
            torch.cat([vision, text])[None],
            vision_map,
            [level[first : first + tiles] for level in inputs.levels],
            saliency=inputs.saliency[first : first + tiles],
            text_mask=torch.arange(slots.shape[1])[None] >= len(tokens),
        )
        for t, row in zip(tokens, alone[0], strict=False):
            torch.testing.assert_close(row, together[t.sample, t.slot], rtol=1e-10, atol=1e-10)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_rows_pass_bit_for_bit_and_nothing_is_written_in_place(dtype: torch.dtype) -> None:
    block, inputs = block_of(dtype), batch().to(dtype)
    others = ~inputs.vision_mask
    inputs.hidden_states[others & ~inputs.text_mask] = torch.tensor([torch.nan, torch.inf, -0.0] * 4, dtype=dtype)
    before = inputs.hidden_states.clone()
    out = run(block, inputs)
    assert torch.equal(bits(inputs.hidden_states), bits(before))
    assert torch.equal(bits(out)[others], bits(before)[others])
    assert out.dtype == dtype
    assert out[inputs.vision_mask].isfinite().all()
    assert (out != before)[inputs.vision_mask].any(-1).all()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", ["zero", "gate"])
@pytest.mark.parametrize("layers", [*LAYERS, *ALONE], ids=str)
def test_a_new_block_is_the_identity_bit_for_bit(layers: tuple[str, ...], residual: str, dtype: torch.dtype) -> None:
    inputs = batch().to(dtype)
    block = VisionRemember(config_of(layers=layers, residual=residual, bias=True), dtype=dtype)
    if layers == ALONE[0]:
        inputs = dataclasses.replace(inputs, text_mask=None)
    inputs.hidden_states[inputs.vision_mask] *= torch.tensor([-0.0, 0.0, 1.0] * 4, dtype=dtype)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            out = block(
                inputs.hidden_states,
                inputs.vision_map,
                inputs.levels if block.cross_attention is not None else None,
                text_mask=inputs.text_mask,
            )
        assert torch.equal(bits(out), bits(inputs.hidden_states))


@pytest.mark.parametrize("layers", ALONE, ids=str)
def test_a_new_block_of_ordinary_initialisation_is_not(layers: tuple[str, ...]) -> None:
    inputs = batch()
    block = VisionRemember(config_of(layers=layers, residual="normal", text_guide="none"), dtype=torch.float64)
    assert (run(block, inputs) != inputs.hidden_states)[inputs.vision_mask].any(-1).all()


def test_the_backend_is_that_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def noted(operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, backend: str | None = None, **named: Any) -> Any:
            asked.append(backend)
            return operator(*arguments, backend=backend, **named)

        return call

    for module, name in (("local_cross_attention", "local_cross_attention"), ("_literal_attention", "local_attention")):
        caller = sys.modules[f"vr_kernels.nn.{module}"]
        monkeypatch.setattr(caller, name, noted(getattr(caller, name)))
    inputs = batch().to(torch.float32)
    for options in ({}, {"literal": True, "num_heads": None}):
        for backend in ("reference", "cpu"):
            asked.clear()
            run(VisionRemember(config_of(**options), backend=backend), inputs)
            assert set(asked) == {backend}
        with pytest.raises(ValueError, match="backend"):
            run(VisionRemember(config_of(**options), backend="cuda"), inputs)


@pytest.mark.parametrize("layers", [*LAYERS, *ALONE], ids=str)
@pytest.mark.parametrize("features", [False, True], ids=["without features", "with features"])
def test_a_batch_without_an_image_passes_and_touches_every_parameter(layers: tuple[str, ...], features: bool) -> None:
    newline_keys = "bidirectional" in layers
    block = block_of(torch.float32, layers=layers, bias=True, bidirectional_bias=True, newline_keys=newline_keys)
    hidden_states = torch.randn(2, 5, HIDDEN)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    if features:  # an image whose tokens were all truncated
        slots = torch.full((2, 5, 3), -1)
        vision_map = VisionTokenMap.from_slots(slots, grid=(2, 3), feature_grid=(4, 9), tiles=[1])
    else:
        vision_map = VisionTokenMap.from_grid(nothing, grid=(2, 3), feature_grid=(4, 9))
    levels = [torch.randn(1, 4, 9, width) for width in WIDTHS] if features and block.cross_attention else None
    text_mask = ~nothing if block.bidirectional is not None else None
    out = block(hidden_states, vision_map, levels, text_mask=text_mask)
    assert torch.equal(out, hidden_states)
    out.sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_the_guide_sees_the_prompt_and_nothing_else() -> None:
    block, inputs = block_of(), batch()
    before = run(block, inputs)
    unread = ~inputs.text_mask & ~inputs.vision_mask
    changed = dataclasses.replace(inputs, hidden_states=inputs.hidden_states.clone())
    changed.hidden_states[unread] = 1e3  # the answer, among others
    vision = inputs.vision_mask
    assert torch.equal(run(block, changed)[vision], before[vision])
    changed.hidden_states[0, 13] = 1e3  # the prompt of sample 0
    assert (run(block, changed) != before)[vision].any(-1).tolist() == [True] * 6 + [False] * 18


def test_an_image_whose_sample_has_no_text_has_no_guide() -> None:
    block, inputs = block_of(), batch()
    inputs.text_mask[2] = False
    state = {name: value.detach() for name, value in block.state_dict().items()}
    out = run(block, inputs)
    expected = oracle.vision_remember(state, block.config, inputs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    without = run(block, inputs, text=False)
    torch.testing.assert_close(out[2], without[2], rtol=1e-10, atol=1e-10)
    assert not torch.equal(out[0], without[0])


def test_newlines_are_keys_only_where_they_are_asked_for() -> None:
    inputs = batch()
    changed = dataclasses.replace(inputs, hidden_states=inputs.hidden_states.clone())
    for sample, slot, _ in inputs.newlines:
        changed.hidden_states[sample, slot] *= -2
    for keys in (False, True):
        block = block_of(newline_keys=keys, text_guide="none")
        differs = (run(block, changed) != run(block, inputs)).any(-1)
        read = torch.zeros_like(differs)
        for token in inputs.tokens:
            read[token.sample, token.slot] = keys and token.image == 1  # the image whose newlines they are
        assert torch.equal(differs & inputs.vision_mask, read)


def test_without_position_ids_a_token_stands_at_its_own_slot() -> None:
    block, inputs = block_of(bidirectional_rope_theta=50.0, newline_keys=True), batch()
    slots = torch.arange(inputs.hidden_states.shape[1])[None]
    call = {"text_mask": inputs.text_mask}
    out = block(inputs.hidden_states, inputs.vision_map, inputs.levels, **call)
    for position_ids in (slots, slots.expand(4, -1), slots.int()):
        given = block(inputs.hidden_states, inputs.vision_map, inputs.levels, **call, position_ids=position_ids)
        assert torch.equal(given, out)


def test_newlines_and_positions_are_refused_where_nobody_knows_or_reads_them() -> None:
    inputs = batch()
    unknown = dataclasses.replace(inputs.vision_map, newline_rows=None)
    with pytest.raises(ValueError, match=r"^VisionRemember: config\.newline_keys is True, and the map has no newline"):
        run(block_of(newline_keys=True), dataclasses.replace(inputs, vision_map=unknown))
    with pytest.raises(
        ValueError, match=r"^VisionRemember: position_ids is given and config\.bidirectional_rope_theta"
    ):
        block_of()(inputs.hidden_states, inputs.vision_map, inputs.levels, position_ids=inputs.position_ids)


def test_saliency_and_guide_are_refused_where_they_are_not_configured() -> None:
    inputs, arguments = batch(), {"text_mask": batch().text_mask}
    call = (inputs.hidden_states, inputs.vision_map, inputs.levels)
    for fault in ({"text_guide": "none"}, {"layers": ALONE[0]}):
        with pytest.raises(ValueError, match=r"VisionRemember: text_mask is given, config\.text_guide is '(none|max)'"):
            block_of(**fault)(*call, **arguments)
    with pytest.raises(ValueError, match=r"VisionRemember: features are given, and config.layers is \('bidirectional'"):
        block_of(layers=ALONE[1])(*call)
    with pytest.raises(ValueError, match=r"saliency is given, and config\.saliency is 'none'; they must agree"):
        block_of()(*call, saliency=inputs.saliency)
    with pytest.raises(
        ValueError, match=r"VisionRemember: hidden_states has \(B, T\) = \(4, 1\), the map was made for"
    ):
        block_of()(inputs.hidden_states[:, :1], *call[1:])
