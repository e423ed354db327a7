"""``LocalCrossAttention.from_multihead_attention``: a stock window resampler, replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vr_kernels import LocalCrossAttention

WIDTHS = (4, 8)


def stock_resampler(attention: nn.MultiheadAttention, query: Tensor, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What people write: concatenate, partition into windows, and attend to each by itself."""
    batch, n_h, n_w, _ = query.shape
    _, height, width, channels = (joined := torch.cat(levels, -1)).shape
    windows = joined.view(batch, n_h, height // n_h, n_w, width // n_w, channels).transpose(2, 3)
    windows, tokens = windows.flatten(3, 4).flatten(0, 2), query.flatten(0, 2).unsqueeze(1)  # (N, K, C), (N, 1, E)
    if not attention.batch_first:
        windows, tokens = windows.transpose(0, 1), tokens.transpose(0, 1)
    out, weights = attention(tokens, windows, windows, average_attn_weights=False)
    return out.reshape(query.shape), weights.reshape(batch, n_h, n_w, attention.num_heads, -1)


def stock(**options: Any) -> nn.MultiheadAttention:
    given = {"embed_dim": 12, "num_heads": 3, "kdim": 12, "vdim": 12, "batch_first": True} | options
    attention = nn.MultiheadAttention(**given, dtype=torch.float64)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return attention


def inputs() -> tuple[Tensor, list[Tensor]]:
    return torch.randn(2, 2, 3, 12).double(), [torch.randn(2, 4, 9, width).double() for width in WIDTHS]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("width", [12, 20], ids=["joined in_proj", "separate in_proj"])
def test_outputs_weights_and_gradients_are_the_stock_resampler_s(width: int, batch_first: bool, bias: bool) -> None:
    attention = stock(kdim=width, vdim=width, bias=bias, batch_first=batch_first)
    assert (attention.in_proj_weight is None) == (width != 12)
    query, levels = inputs()
    if width == 20:
        levels.append(torch.randn(2, 4, 9, 8).double())
    dims = [level.shape[-1] for level in levels]
    module = LocalCrossAttention.from_multihead_attention(attention, dims)
    expected, weights = stock_resampler(attention, query, levels)
    out, attention_weights = module(query, levels, need_weights=True)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(attention_weights, weights, rtol=1e-11, atol=1e-12)

    out.square().sum().backward()
    expected.square().sum().backward()
    if attention.in_proj_weight is not None:
        d_q, d_k, d_v = attention.in_proj_weight.grad.chunk(3)
    else:
        d_q, d_k, d_v = (w.grad for w in (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight))
    pairs = [(module.query_proj.weight, d_q), (module.key_weight, d_k), (module.value_weight, d_v)]
    pairs.append((module.out_proj.weight, attention.out_proj.weight.grad))
    for parameter, gradient in pairs:
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-11)


def test_it_is_the_same_function_in_float32_by_the_cpu_kernels() -> None:
    attention = stock().float()
    query, levels = inputs()
    module = LocalCrossAttention.from_multihead_attention(attention, WIDTHS)
    out = module(query.float(), [level.float() for level in levels])
    exact, _ = stock_resampler(attention.double(), query.float().double(), [level.float().double() for level in levels])
    assert (out - exact).abs().max() < 1e-5 * exact.abs().max()


def test_levels_are_one_unless_told() -> None:
    attention = stock()
    query, levels = inputs()
    module = LocalCrossAttention.from_multihead_attention(attention)
    assert module.feature_dims == (12,)
    expected, _ = stock_resampler(attention, query, levels)
    torch.testing.assert_close(module(query, torch.cat(levels, -1)), expected, rtol=1e-11, atol=1e-12)


def test_weights_are_copies_and_keep_what_is_frozen() -> None:
    attention = stock(kdim=20, vdim=20)
    attention.k_proj_weight.requires_grad_(False)
    module = LocalCrossAttention.from_multihead_attention(attention.eval())
    assert not module.key_weight.requires_grad
    assert module.value_weight.requires_grad
    assert not module.training
    before = module.key_weight.clone()
    with torch.no_grad():
        attention.k_proj_weight.zero_()
    assert torch.equal(module.key_weight, before)


REFUSALS: dict[str, dict[str, Any]] = {
    "attention was built with add_bias_kv or add_zero_attn": {"add_bias_kv": True},
    "attention was built with add_bias_kv or add_zero_attn; a window has no such extra key": {"add_zero_attn": True},
    "attention has dropout 0.1 and is in training mode": {"dropout": 0.1},
    "kdim is 20, vdim is 12; keys and values must be one input": {"kdim": 20},
}


@pytest.mark.parametrize(("words", "options"), REFUSALS.items())
def test_what_has_no_counterpart_is_refused(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^LocalCrossAttention.from_multihead_attention: {words}"):
        LocalCrossAttention.from_multihead_attention(stock(**options))


def test_dropout_is_no_obstacle_in_evaluation() -> None:
    attention = stock(dropout=0.5).eval()
    query, levels = inputs()
    expected, _ = stock_resampler(attention, query, levels)
    module = LocalCrossAttention.from_multihead_attention(attention, WIDTHS)
    torch.testing.assert_close(module(query, levels), expected, rtol=1e-11, atol=1e-12)


def test_levels_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"feature_dims is \(4, 4\), kdim is 12; the levels' widths must add up to it"):
        LocalCrossAttention.from_multihead_attention(stock(), (4, 4))


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"attention is a Linear; it must be a torch.nn.MultiheadAttention"):
        LocalCrossAttention.from_multihead_attention(nn.Linear(3, 3))


def test_a_replaced_output_projection_is_refused() -> None:
    attention = stock()
    attention.out_proj = nn.Sequential(attention.out_proj)
    with pytest.raises(TypeError, match=r"attention.out_proj is a Sequential; it must be a plain torch.nn.Linear"):
        LocalCrossAttention.from_multihead_attention(attention)


@pytest.mark.parametrize("name", ["in_proj_weight", "in_proj_bias"])
def test_a_parametrised_input_projection_is_read_as_it_presents_itself(name: str) -> None:
    attention = stock()
    query, levels = inputs()

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(attention, name, Doubled())
    expected, _ = stock_resampler(attention, query, levels)
    module = LocalCrossAttention.from_multihead_attention(attention, WIDTHS)
    torch.testing.assert_close(module(query, levels), expected, rtol=1e-11, atol=1e-12)


def test_one_that_computes_with_other_weights_is_refused() -> None:
    plain = nn.MultiheadAttention(12, 3)
    plain.qconfig = torch.ao.quantization.default_qconfig
    quantizable = torch.ao.nn.quantizable.MultiheadAttention.from_float(plain)
    with pytest.raises(TypeError, match="attention is a MultiheadAttention with a forward of its own"):
        LocalCrossAttention.from_multihead_attention(quantizable)
