"""The CUDA side without a GPU: shapes, dtypes, devices and dispatch, on tensors that are nowhere."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import DTYPES, Call, attention_call, cross_attention_call
from python_tests._operators import LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, Subject, over_windowed

ATTENTION = attention_call(saliency=True, bias="shared", value_width=5)
CROSS_ATTENTION = cross_attention_call(norm="level", biases=True, saliency="value")


@pytest.fixture(autouse=True)
def _fake_tensors() -> Iterator[None]:
    with FakeTensorMode():
        yield


def fake(value: Any, device: str, dtype: torch.dtype) -> Any:
    """Fake tensors like a call's, on a device that need not be there."""
    if isinstance(value, dict):
        return {name: fake(item, device, dtype) for name, item in value.items()}
    if isinstance(value, list):
        return [fake(item, device, dtype) for item in value]
    return torch.empty(value.shape, dtype=dtype, device=device) if isinstance(value, Tensor) else value


def on_cuda(call: Call, dtype: torch.dtype = torch.float32) -> Call:
    faked: Call = fake(call, "cuda", dtype)
    return faked


def kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_windowed
def test_results_have_the_reference_s_shapes_and_dtypes(subject: Subject, dtype: torch.dtype) -> None:
    call = ATTENTION if subject is LOCAL_ATTENTION else CROSS_ATTENTION
    results = subject.run("triton")(**fake(call, "cuda", dtype))
    expected = subject.run("reference")(**fake(call, "cpu", dtype))
    assert all(result.device.type == "cuda" for result in results)
    assert [kind(result)[:2] for result in results] == [kind(result)[:2] for result in expected]


# autograd itself asks for a device, so the backward operators are called by name.
def test_gradients_of_local_attention_are_like_their_inputs() -> None:
    call = on_cuda(ATTENTION, torch.bfloat16)
    inputs = (call["query"], [call["key"]], [call["value"]], None, call["attention_bias"], call["saliency"])
    out, attention, _ = torch.ops.vr_kernels.local_attention(*inputs, 1.0, "triton")
    backward = torch.ops.vr_kernels.local_attention_backward
    gradients = backward(out, None, None, *inputs, attention, 1.0, [True, True, False, True, True], "triton")
    expected = [call["query"], call["attention_bias"], torch.empty(0, dtype=torch.bfloat16, device="cuda")]
    assert list(map(kind, gradients)) == list(map(kind, [*expected, call["key"], call["value"]]))


def test_gradients_of_local_cross_attention_are_like_their_inputs() -> None:
    call = on_cuda(CROSS_ATTENTION, torch.bfloat16)
    names = ("query", "features", "key_weight", "value_weight", "window_index", "key_bias", "value_bias")
    names += ("norm_weight", "norm_bias", "attention_bias", "saliency")
    inputs, options = [call.get(name) for name in names], (call["num_heads"], 1e-6, True, False, 1.0)
    out, attention = torch.ops.vr_kernels.local_cross_attention(*inputs, *options, "triton")
    needs = [tensor is not None for tensor in (*inputs[:1], *inputs[2:4], *inputs[5:], True)]
    backward = torch.ops.vr_kernels.local_cross_attention_backward
    gradients = backward(out, None, *inputs, attention, *options, needs, "triton")
    nothing = torch.empty(0, dtype=torch.bfloat16, device="cuda")
    named = [nothing if tensor is None else tensor for tensor in (*inputs[:1], *inputs[2:4], *inputs[5:])]
    assert list(map(kind, gradients)) == list(map(kind, [*named, *call["features"]]))


@over_windowed
def test_no_call_chooses_a_kernel_that_was_never_measured(subject: Subject) -> None:
    call = on_cuda(ATTENTION if subject is LOCAL_ATTENTION else CROSS_ATTENTION)
    explanation = vr_kernels.explain(subject.function, **call)
    assert explanation.reasons["triton"] == "by name only: experimental: never measured on a GPU"
    assert explanation.chosen in ("unabsorbed", "reference")
    assert vr_kernels.explain(subject.function, **call, backend="triton").chosen == "triton"


def _not_installed(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (_not_installed, r"triton is not installed; pip install 'vr-kernels\[triton\]'"),
        (lambda name: "3.5.1", r"triton 3\.5\.1 is installed; it must be at least 3\.6 and below 3\.8"),
        (lambda name: "3.8.0", r"triton 3\.8\.0 is installed"),
        (lambda name: "4.0", r"triton 4\.0 is installed"),
    ],
)
def test_a_triton_that_is_missing_or_untested_is_refused(
    version: Callable[[str], str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ValueError, match=sentence):
        vr_kernels.local_attention(**on_cuda(ATTENTION, torch.float16), scale=0.25, backend="triton")


def test_the_cpu_backend_refuses_cuda_tensors() -> None:
    with pytest.raises(ValueError, match="the CPU kernels take CPU tensors, these are on cuda"):
        vr_kernels.local_attention(**on_cuda(ATTENTION), backend="cpu")


def test_tensors_must_share_the_gpu() -> None:
    call = on_cuda(CROSS_ATTENTION)
    call["key_weight"] = torch.empty(call["key_weight"].shape)
    with pytest.raises(ValueError, match="key_weight is on cpu, query is on cuda"):
        LOCAL_CROSS_ATTENTION.run("triton")(**call)
