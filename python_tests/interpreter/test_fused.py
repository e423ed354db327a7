"""How the fused products cut their work: the result is the same, however windows, heads and channels are split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests._cases import cross_attention_call, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import LOCAL_CROSS_ATTENTION
from vr_kernels.ops._triton import fused
from vr_kernels.ops._triton.configurations import PROJECT, SCORES

FUSED = LOCAL_CROSS_ATTENTION.run("triton_fused")
REFERENCE = LOCAL_CROSS_ATTENTION.run("reference")


def assert_obeys(**spec: Any) -> None:
    def draw(seed: int) -> Any:
        return cross_attention_call(seed, **spec)

    norms, skip = ["root_mean_square"], ["d key_bias"]
    assert_obeys_the_error_rule(FUSED, REFERENCE, LOCAL_CROSS_ATTENTION.oracle, draw, draws=2, norms=norms, skip=skip)


@pytest.mark.parametrize("programs", [1, 3, 10_000])
def test_channels_and_heads_may_be_split_in_any_way(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PROGRAMS", programs)  # 1: one program adds up all blocks of channels of all heads
    assert_obeys(batch=1, widths=(5, 70, 40), heads=5, norm="level", saliency="value", biases=True)


def test_splits_keep_to_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PROGRAMS", 10_000)
    made = []
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: made.append(r := empty(self, *a, **k)) or r)
    call = cross_attention_call(batch=1, widths=(70, 70))
    out = FUSED(**call)[0]
    monkeypatch.setattr(fused, "SPLIT_BYTES", 2 * out.numel() * 4)
    assert max(tensor.shape[0] for tensor in made if tensor.dim() == 4) > 2
    made.clear()
    FUSED(**call)
    assert max(tensor.shape[0] for tensor in made if tensor.shape[1:] == (6, 4, 8)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_tiles_of_windows_and_of_a_head_s_width(dtype: torch.dtype) -> None:
    windows = SCORES[dtype.itemsize].block_n + 3
    width = PROJECT[dtype.itemsize].block_d + 5
    assert_obeys(batch=1, windows=(1, windows), window=(1, 2), heads=3, head_dim=width, widths=(9,), dtype=dtype)


def test_weights_queries_and_gradients_may_have_any_strides() -> None:
    call = cross_attention_call(batch=1)
    names = ("query", "key_weight", "value_weight")
    cotangent = torch.randn_like(call["query"])

    def results(call: dict[str, Any], cotangent: Tensor) -> tuple[Tensor, ...]:
        leaves = {name: call[name].detach().requires_grad_() for name in names}
        out = FUSED(**(call | leaves))[0]
        return out, *torch.autograd.grad(out, list(leaves.values()), cotangent)

    strided = call | {name: torch.stack([call[name]] * 2, -1)[..., 0] for name in names}
    strided["value_weight"] = call["value_weight"].T.contiguous().T
    expected = results(call, cotangent)
    for tensor, wanted in zip(results(strided, torch.stack([cotangent] * 2, -1)[..., 0]), expected, strict=True):
        assert torch.equal(tensor, wanted)


def test_float16_gradients_hold_a_loss_scale_times_an_outlier() -> None:
    call = cross_attention_call(batch=1, dtype=torch.float16, peaked=0.01)
    call["features"] = [level * 400 for level in call["features"]]  # some thousands: an encoder's outliers
    for name in ("key_weight", "value_weight"):
        call[name] = call[name] / 400
    call["query"] = call["query"].requires_grad_()
    call["key_weight"] = call["key_weight"].requires_grad_()
    out = FUSED(**call)[0]
    cotangent = torch.randn_like(out) * 256
    gradients = torch.autograd.grad(out, (call["query"], call["key_weight"]), cotangent)
    doubled = map_tensors(call, lambda tensor: tensor.detach().double().requires_grad_())
    exact_out = REFERENCE(**doubled)[0]
    exact = torch.autograd.grad(exact_out, (doubled["query"], doubled["key_weight"]), cotangent.double())
    windows, largest = len(call["query"].flatten(0, 2)), call["query"].abs().max()
    assert exact[1].abs().max() / (windows * largest) > 65504  # so large is some sum_j ds_j f_j at least
    for gradient, wanted in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=4e-3 * float(wanted.abs().max()))


def test_windows_that_are_not_there_give_no_weight_gradient() -> None:
    call = cross_attention_call(batch=1, indexed=True, norm="all")
    for name in ("query", "window_index"):
        call[name] = call[name][:0]
    result = evaluate(FUSED, call, random_cotangents(FUSED, call))
    for name in ("d key_weight", "d value_weight", "d norm_weight"):
        assert torch.equal(result[name], torch.zeros_like(call[name.removeprefix("d ")])), name
