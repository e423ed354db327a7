"""``BidirectionalTokenAttention`` with rotary positions, and with newline tokens as further keys."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2RotaryEmbedding, apply_rotary_pos_emb

from python_tests.nn._bidirectional import NEWLINES, POSITIONS, batch, layer, spelt_out
from vr_kernels.nn._rotary import rotate


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


@pytest.mark.parametrize(
    ("error", "words", "fault"),
    [
        (TypeError, "key_rows is torch.float32; it must be int32 or int64", {"key_rows": NEWLINES.float()}),
        (ValueError, "key_rows has shape (3, 2); it must be (I, M) with I = 4", {"key_rows": NEWLINES[:3]}),
        (ValueError, "key_rows has shape (4,); it must be (I, M)", {"key_rows": NEWLINES[:, 0]}),
        (ValueError, "key_rows[0, 0] is 32; it must be -1", {"key_rows": NEWLINES + 26}),
        (ValueError, "key_rows names row 6 more than once", {"key_rows": NEWLINES.clamp(max=6)}),
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
    with pytest.raises(ValueError, match=r": key_rows beside token_rows names row 2 more than once"):
        layer()(**batch(), key_rows=torch.tensor([[2], [-1], [-1], [-1]]))
