"""``BidirectionalTokenAttention``: the layer as concatenation, attention and scatter spell it, image by image."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from python_tests._errors import assert_obeys_the_error_rule
from python_tests.nn._bidirectional import (
    HEADS,
    LENGTH,
    NEWLINES,
    POSITIONS,
    ROWS,
    SAMPLE,
    WIDTH,
    batch,
    layer,
    spelt_out,
)
from vr_kernels import BidirectionalTokenAttention


@pytest.mark.parametrize("guide", ["max", "mean", None])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["rms", "layer", None])
def test_it_is_the_layer_spelt_out(norm: str | None, bias: bool, text: bool, guide: str | None) -> None:
    module, given = layer(norm=norm, bias=bias, guide=guide).double(), batch(text=text)
    given["hidden_states"] = given["hidden_states"].double().requires_grad_()
    leaves = [given["hidden_states"], *module.parameters()]
    expected, out = spelt_out(module, **given), module(**given)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(out)
    for result, wanted in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rope_theta", [None, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_obeys_the_error_rule(dtype: torch.dtype, rope_theta: float | None) -> None:
    module = layer(rope_theta=rope_theta).to(dtype)
    exact = copy.deepcopy(module).double()
    assert_obeys_the_error_rule(
        lambda **call: module(**call),
        lambda **call: spelt_out(module, **call),
        lambda **call: spelt_out(exact, **call),
        lambda seed: batch(seed) | {"hidden_states": batch(seed)["hidden_states"].to(dtype)},
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_it_starts_as_the_identity_bit_for_bit_and_learns(dtype: torch.dtype) -> None:
    module, given = BidirectionalTokenAttention(WIDTH, HEADS, dtype=dtype), batch()
    stream = given["hidden_states"].to(dtype)
    stream[:, :, 0], stream[:, :, 1] = -0.0, 0.0
    out = module(**(given | {"hidden_states": stream}))
    assert torch.equal(out.view(torch.uint8), stream.view(torch.uint8))
    out.sum().backward()
    assert module.out_proj.weight.grad is not None
    assert module.out_proj.weight.grad.any()


def test_other_tokens_pass_bit_for_bit_whatever_they_hold() -> None:
    module, given = layer(), batch()
    read = torch.zeros(2 * LENGTH, dtype=torch.bool).index_fill(0, ROWS[ROWS >= 0], True)
    others = ~read & ~given["text_mask"].flatten()
    expected = module(**given).flatten(0, 1)
    kept = torch.tensor([torch.inf, -torch.inf, -0.0, torch.nan]).repeat(int(others.sum()), WIDTH // 4)
    given["hidden_states"].flatten(0, 1)[others] = kept
    out = module(**given).flatten(0, 1)
    assert torch.equal(out[~others], expected[~others])
    assert torch.equal(out[others].view(torch.int32), kept.view(torch.int32))


def test_an_image_sees_no_other_image_and_no_other_sample_s_text() -> None:
    module, given = layer(), batch()
    before = module(**given)
    changed = given["hidden_states"].clone()
    changed[0, 2:6] += 1  # the first image
    changed[0, 12:15] += 1  # the first sample's text
    after = module(**(given | {"hidden_states": changed}))
    assert torch.equal(after[1], before[1])
    changed = given["hidden_states"].clone()
    changed[0, 2:6] += 1
    after = module(**(given | {"hidden_states": changed}))
    assert torch.equal(after[0, 7:10], before[0, 7:10]), "the third image, of the same sample"


def test_an_image_a_sample_needs_no_image_sample() -> None:
    module, given = layer(), batch()
    del given["image_sample"]
    given["token_rows"] = ROWS[:2]
    torch.testing.assert_close(module(**given), spelt_out(module, **given))


class LowRank(nn.Module):
    """What an adapter library puts in a Linear's place."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_replaced_projections_are_called() -> None:
    module, given = layer(), batch()
    module.qkv_proj = LowRank(module.qkv_proj, WIDTH, 3 * WIDTH)  # type: ignore[assignment]
    module.out_proj = LowRank(module.out_proj, WIDTH, WIDTH)  # type: ignore[assignment]
    torch.testing.assert_close(module(**given), spelt_out(module, **given))


def test_parametrised_weights_are_honoured() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    module, given = layer(), batch()
    for owner, name in ((module.qkv_proj, "weight"), (module, "norm_weight")):
        parametrize.register_parametrization(owner, name, Doubled())
    torch.testing.assert_close(module(**given), spelt_out(module, **given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"norm": "rms"}, {"norm": "layer"}, {"norm": None}, {"rope_theta": 1e4}], ids=str)
def test_it_compiles_into_one_graph(options: dict[str, Any]) -> None:
    torch.compiler.reset()
    module, given = layer(**options), batch()
    if "rope_theta" in options:
        given |= {"key_rows": NEWLINES, "position_ids": POSITIONS}
    given["hidden_states"].requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = [given["hidden_states"], *module.parameters()]
    expected, out = module(**given), compiled(**given)
    torch.testing.assert_close(out, expected)
    for result, wanted in zip(
        torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


def test_under_autocast_the_stream_keeps_its_dtype() -> None:
    module, given = layer(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(**given)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, module(**given), rtol=0.1, atol=0.1 * float(out.detach().abs().max()))
    assert not torch.equal(out, module(**given)), "the projections ran in bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_images_leave_the_stream(dtype: torch.dtype) -> None:
    stream = torch.randn(2, LENGTH, WIDTH, dtype=dtype)
    for rows in (torch.empty(0, 4, dtype=torch.int64), torch.empty(2, 0, dtype=torch.int64)):
        sample = torch.zeros(rows.shape[0], dtype=torch.int64)
        out = layer(dtype=dtype)(stream, rows, text_mask=torch.ones(2, LENGTH, dtype=torch.bool), image_sample=sample)
        assert torch.equal(out, stream)


def test_the_state_dict_s_names_and_shapes_are_stable() -> None:
    module = BidirectionalTokenAttention(12, 2, head_dim=8, norm="layer", bias=True)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "norm_weight": (12,),
        "norm_bias": (12,),
        "qkv_proj.weight": (48, 12),
        "qkv_proj.bias": (48,),
        "out_proj.weight": (12, 16),
        "out_proj.bias": (12,),
    }
    assert list(BidirectionalTokenAttention(12, 2, norm=None).state_dict()) == ["qkv_proj.weight", "out_proj.weight"]
    other = BidirectionalTokenAttention(12, 2, head_dim=8, norm="layer", bias=True, zero_init=False)
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))


def test_a_complete_call_is_the_same_and_what_is_not_complete_is_refused() -> None:
    module, given = layer(), batch()
    whole = given | {"token_rows": ROWS[:1], "image_sample": SAMPLE[:1]}
    torch.testing.assert_close(module(**whole, complete=True), module(**whole))
    for fault in (
        {"token_rows": torch.tensor([[2, 3, 4, -1]])},
        {"image_sample": torch.tensor([1])},  # without text
        {"key_rows": torch.tensor([[6, -1]])},
    ):
        with pytest.raises(ValueError, match="complete is True, and a row is padding or a sample without text"):
            module(**(whole | fault), complete=True)


def test_it_is_built_where_and_as_asked() -> None:
    module = BidirectionalTokenAttention(12, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert (
        "12, num_heads=2, head_dim=6, norm='rms', norm_eps=1e-06, guide='max', rope_theta=None, zero_init=True"
        in repr(module)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_heads": 5}, "num_heads is 5, hidden_size is 12; give head_dim"),
        ({"head_dim": 0}, "head_dim is 0; it must be at least 1"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be a positive number or None"),
        ({"rope_theta": 1e4, "head_dim": 5}, "head_dim is 5; it must be even where rope_theta is given"),
        ({"norm": "batch"}, 'norm is \'batch\'; it must be "rms", "layer" or None'),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^BidirectionalTokenAttention: {re.escape(words)}"):
        BidirectionalTokenAttention(**({"hidden_size": 12, "num_heads": 2} | arguments))


MASK = batch()["text_mask"]


@pytest.mark.parametrize("guide", ["max", "mean"])
@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, "text_mask has shape (2, 1); it must be (2, 16)", {"text_mask": MASK[:, :1]}),
        (ValueError, "text_mask has shape (1, 16); it must be (2, 16)", {"text_mask": MASK[:1]}),
        (TypeError, "text_mask is torch.float32; it must be torch.bool", {"text_mask": MASK.float()}),
        (TypeError, "text_mask is a list; it must be a torch.Tensor", {"text_mask": MASK.tolist()}),
        (ValueError, "token_rows has 4 images, hidden_states 2 samples, and image_sample is", {"image_sample": None}),
        (ValueError, "image_sample has shape (3,); it must be (4,)", {"image_sample": SAMPLE[:3]}),
        (TypeError, "token_rows is None; it must be a torch.Tensor", {"token_rows": None, "key_rows": NEWLINES}),
        (ValueError, "token_rows has shape (4,); it must be (I, N)", {"token_rows": ROWS[:, 0], "key_rows": NEWLINES}),
        (ValueError, "hidden_states has shape (24,); it must be (B, T, D)", {"hidden_states": torch.zeros(WIDTH)}),
    ],
)
def test_what_does_not_fit_the_stream_is_refused_in_words(
    error: type[Exception], words: str, change: dict[str, Any], guide: str
) -> None:
    with pytest.raises(error, match=f"^BidirectionalTokenAttention: {re.escape(words)}"):
        layer(guide=guide)(**(batch() | change))


def test_without_a_guide_no_text_is_looked_at() -> None:
    module = layer(guide=None)
    assert torch.equal(module(**batch() | {"text_mask": MASK[:1]}), module(**batch(text=False)))
