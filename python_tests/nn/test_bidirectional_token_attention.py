"""``BidirectionalTokenAttention``: the layer as concatenation, attention and scatter spell it, image by image."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2RotaryEmbedding, apply_rotary_pos_emb

from python_tests._errors import assert_obeys_the_error_rule
from vr_kernels import BidirectionalTokenAttention
from vr_kernels.nn._rotary import rotate

WIDTH, HEADS, LENGTH = 24, 4, 16
ROWS = torch.tensor([[2, 3, 4, 5], [16 + 1, 16 + 2, -1, -1], [7, 8, 9, -1], [-1, -1, -1, -1]])
SAMPLE = torch.tensor([0, 1, 0, 1])


def layer(**options: Any) -> BidirectionalTokenAttention:
    module = BidirectionalTokenAttention(WIDTH, HEADS, **({"zero_init": False} | options))
    for parameter in module.parameters():  # weights of a norm and biases too
        nn.init.normal_(parameter, std=0.3)
    return module


def batch(seed: int = 0, text: bool = True) -> dict[str, Tensor]:
    """Two samples, the second without text; three images and one of padding alone."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    mask[0, 12:15] = True
    given = {"hidden_states": torch.randn(2, LENGTH, WIDTH, generator=generator) * 3, "token_rows": ROWS}
    given["image_sample"] = SAMPLE
    return given | ({"text_mask": mask} if text else {})


def spelt_out(
    module: BidirectionalTokenAttention,
    hidden_states: Tensor,
    token_rows: Tensor,
    text_mask: Tensor | None = None,
    image_sample: Tensor | None = None,
    key_rows: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """The layer as the paper spells it: one image after the other, nothing padded, nothing masked."""

    def norm(rows: Tensor) -> Tensor:
        if module.norm == "rms":
            return F.rms_norm(rows, (WIDTH,), module.norm_weight, module.norm_eps)
        if module.norm == "layer":
            return F.layer_norm(rows, (WIDTH,), module.norm_weight, module.norm_bias, module.norm_eps)
        return rows

    stream = hidden_states.flatten(0, 1)
    out = stream
    for i, numbers in enumerate(token_rows):
        rows = numbers[numbers >= 0]
        if len(rows) == 0:
            continue
        newlines = rows[:0] if key_rows is None else key_rows[i][key_rows[i] >= 0]
        read = torch.cat([rows, newlines])
        tokens, position = norm(stream[read]), read % LENGTH
        if position_ids is not None:
            position = position_ids.expand(len(hidden_states), -1).flatten()[read]
        sample = i if image_sample is None else int(image_sample[i])
        if module.guide is not None and text_mask is not None and text_mask[sample].any():
            prompt = hidden_states[sample][text_mask[sample]]
            guide = prompt.mean(0) if module.guide == "mean" else prompt.max(0).values
            tokens, position = torch.cat([tokens, norm(guide[None])]), F.pad(position, (0, 1))
        q, k, v = module.qkv_proj(tokens).unflatten(-1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
        if module.rope_theta is not None:
            q, k = language_model_rotation(q, k, position, module.rope_theta)
        attended = F.scaled_dot_product_attention(q[:, : len(rows)], k, v).transpose(0, 1).flatten(-2)
        out = out.index_add(0, rows, module.out_proj(attended))
    return out.view(hidden_states.shape)


def language_model_rotation(q: Tensor, k: Tensor, position: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """q and k (h, N, d) as Qwen2 turns its own."""
    exponent = torch.arange(0, q.shape[-1], 2, dtype=torch.promote_types(q.dtype, torch.float32)) / q.shape[-1]
    angle = (position[:, None] / theta**exponent).repeat(1, 2)  # (N, d)
    cosine, sine = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    q, k = apply_rotary_pos_emb(q[None], k[None], cosine[None], sine[None])
    return q[0], k[0]


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


NEWLINES = torch.tensor([[6, -1], [-1, 16 + 4], [11, 10], [-1, -1]])
POSITIONS = torch.stack([torch.arange(LENGTH), torch.arange(LENGTH).clamp(min=3) - 3])  # the second is left-padded


@pytest.mark.parametrize("options", [{"guide": "mean"}, {"norm": "layer"}, {"bias": True, "norm": None}], ids=str)
@pytest.mark.parametrize("positions", [None, POSITIONS, POSITIONS[1:]], ids=["slots", "of each sample", "of all"])
@pytest.mark.parametrize("newlines", [True, False])
def test_with_positions_and_newlines_it_is_the_layer_spelt_out(
    newlines: bool, positions: Tensor | None, options: dict[str, Any]
) -> None:
    module, given = layer(rope_theta=100.0, **options).double(), batch() | {"position_ids": positions}
    given["hidden_states"] = given["hidden_states"].double().requires_grad_()
    given["key_rows"] = NEWLINES if newlines else None
    leaves = [given["hidden_states"], *module.parameters()]
    expected, out = spelt_out(module, **given), module(**given)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(out)
    for result, wanted in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_positions_turn_as_those_of_a_language_model() -> None:
    config = Qwen2Config(
        hidden_size=48, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    x, position = torch.randn(2, 5, 3, 16), torch.randint(0, 4000, (2, 5))
    cosine, sine = Qwen2RotaryEmbedding(config)(x, position)
    expected, _ = apply_rotary_pos_emb(x, x, cosine, sine, unsqueeze_dim=2)
    torch.testing.assert_close(rotate(x, position, 1e4), expected, rtol=1e-3, atol=1e-3)


def test_only_the_distance_to_the_guide_depends_on_where_the_sequence_starts() -> None:
    module, given = layer(rope_theta=100.0).double(), batch() | {"key_rows": NEWLINES}
    given["hidden_states"] = given["hidden_states"].double()
    out, shifted = (module(**given, position_ids=POSITIONS[:1] + start) for start in (0, 37))
    torch.testing.assert_close(shifted[1], out[1], rtol=1e-10, atol=1e-10)  # no text, no guide
    assert not torch.allclose(shifted[0], out[0])


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
    given = batch()
    read = torch.zeros(2 * LENGTH, dtype=torch.bool).index_fill(0, ROWS[ROWS >= 0], True)
    expected = layer()(**given)
    given["hidden_states"].flatten(0, 1)[~read & ~given["text_mask"].flatten()] = torch.nan
    torch.manual_seed(0)
    module = layer()
    out = module(**given)
    assert out.flatten(0, 1)[read].isfinite().all()
    assert out.flatten(0, 1)[~read & ~given["text_mask"].flatten()].isnan().all()
    assert expected.shape == out.shape


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
        ({"rope_theta": 0.0}, "rope_theta is 0.0; it must be positive, or None"),
        ({"rope_theta": 1e4, "head_dim": 5}, "head_dim is 5; it must be even where rope_theta is given"),
        ({"norm": "batch"}, 'norm is \'batch\'; it must be "rms", "layer" or None'),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^BidirectionalTokenAttention: {re.escape(words)}"):
        BidirectionalTokenAttention(**({"hidden_size": 12, "num_heads": 2} | arguments))


@pytest.mark.parametrize(
    ("error", "words", "fault"),
    [
        (TypeError, "key_rows is torch.float32; it must be int32 or int64", {"key_rows": NEWLINES.float()}),
        (ValueError, "key_rows has shape (3, 2); it must be (I, M) with I = 4", {"key_rows": NEWLINES[:3]}),
        (ValueError, "key_rows has shape (4,); it must be (I, M)", {"key_rows": NEWLINES[:, 0]}),
        (TypeError, "position_ids is torch.float32; it must be int32", {"position_ids": POSITIONS.float()}),
        (ValueError, "position_ids has shape (3, 2, 16); it must be", {"position_ids": POSITIONS.expand(3, -1, -1)}),
        (ValueError, "position_ids has shape (2, 15); it must be (B, T) = (2, 16) or (1, 16)",
         {"position_ids": POSITIONS[:, 1:]}),
        (ValueError, "position_ids is on meta, hidden_states is on cpu;", {"position_ids": POSITIONS.to("meta")}),
    ],
)  # fmt: skip
def test_newlines_and_positions_that_do_not_fit_are_refused(
    error: type[Exception], words: str, fault: dict[str, Any]
) -> None:
    with pytest.raises(error, match=f"^BidirectionalTokenAttention: {re.escape(words)}"):
        layer(rope_theta=1e4)(**(batch() | fault))


def test_positions_that_nobody_reads_and_tokens_that_are_newlines_too_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^BidirectionalTokenAttention: position_ids is given and rope_theta is None"):
        layer()(**batch(), position_ids=POSITIONS)
    with pytest.raises(ValueError, match=r"token_rows names row 2 more than once"):
        layer()(**batch(), key_rows=torch.tensor([[2], [-1], [-1], [-1]]))
