"""What Triton's kernels do where the error rule says nothing: strides, edges, NaN, refusals, repeats."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import vr_kernels
from python_tests._cases import attention_call, cross_attention_call
from python_tests._errors import evaluate, random_cotangents
from python_tests._layouts import assert_strides_change_nothing, last_dimension_strided
from python_tests._operators import LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, SUBJECTS, Subject
from vr_kernels.ops._triton.launch import TritonKernel
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._windows import Windows

CROSS_ATTENTION_KERNELS = pytest.mark.parametrize("backend", ["triton", "triton_fused"])


@CROSS_ATTENTION_KERNELS
def test_features_of_any_strides_are_read_in_place(backend: str) -> None:
    call = cross_attention_call(batch=1, widths=(16, 8, 24))
    first, second, third = call["features"]
    hidden_state = torch.randn(1, 1 + first[0, ..., 0].numel(), first.shape[-1])  # a CLS row, sliced off
    hidden_state[:, 1:] = first.flatten(1, 2)
    channels_first = second.permute(0, 3, 1, 2).contiguous()
    wide = torch.cat([third, third], -1)
    strided = [
        hidden_state[:, 1:].unflatten(1, first.shape[1:3]),
        channels_first.permute(0, 2, 3, 1),
        wide[..., third.shape[-1] :],
    ]
    expected = vr_kernels.local_cross_attention(**call, backend=backend)
    result = vr_kernels.local_cross_attention(**(call | {"features": strided}), backend=backend)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_strides_change_nothing(subject: Subject) -> None:
    call = subject.call(**subject.mixes["everything"])
    assert_strides_change_nothing(subject.run("triton"), call, last_dimension_strided)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_rows_outside_the_table_are_absent_and_never_read(dtype: torch.dtype) -> None:
    key = torch.randn(5, 1, 8)
    query = torch.randn(2, 3, 8)
    index = torch.tensor([[0, 7, -5, 3], [2**30, -1, 5, -(2**31)]], dtype=dtype)
    problem = WindowProblem(Windows((2,), (5,), None, 4), [key], [], 0.5, window_index=index)
    out, attention, lse = torch.empty(2, 3, 8), torch.empty(2, 3, 4), torch.empty(2, 3, 1)
    TritonKernel().forward(problem, query, out, attention, lse)
    present = (query[0] @ key[[0, 3], 0].T * 0.5).softmax(-1)
    torch.testing.assert_close(attention[0][:, [0, 3]], present)
    assert torch.equal(attention[0][:, [1, 2]], torch.zeros(3, 2))
    assert torch.equal(out[1], torch.zeros(3, 8))
    assert torch.equal(lse[1], torch.full((3, 1), -torch.inf))


def test_tensors_of_more_than_2_to_the_31_elements() -> None:
    rows, width = 2**25 + 8, 64
    # Memory that is never touched costs nothing: only the rows at both ends become real.
    key = torch.empty(rows, 1, width, dtype=torch.bfloat16)
    ends = torch.cat([key[:8].normal_(), key[-8:].normal_()])
    query = torch.empty(3 * 2**30, dtype=torch.bfloat16).as_strided((3, 2, width), (2**30, width, 1)).normal_()
    near = torch.tensor([[0, 3], [7, -1], [5, 5]])
    call = {"query": query, "window_index": torch.cat([near, near.clamp(min=0) + rows - 8], 1)}
    small = {"query": query.clone(), "window_index": torch.cat([near, near.clamp(min=0) + 8], 1)}
    out = vr_kernels.local_attention(key=key, **call, backend="triton")
    assert torch.equal(out, vr_kernels.local_attention(key=ends, **small, backend="triton"))


@pytest.mark.parametrize("indexed", [False, True])
@CROSS_ATTENTION_KERNELS
def test_every_number_of_a_result_is_written(backend: str, indexed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    call = cross_attention_call(batch=1, indexed=indexed, norm="level", biases=True, saliency="value")
    function = LOCAL_CROSS_ATTENTION.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # torch.empty gives NaN
    try:
        poisoned = evaluate(function, call, cotangents)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in expected.items():
        assert torch.equal(poisoned[name], tensor), name


def test_masks_that_leave_nothing_give_zeros_and_finite_gradients() -> None:
    call = attention_call(batch=1, bias="shared")
    call["attention_bias"].fill_(-torch.inf)
    function = LOCAL_ATTENTION.run("triton")
    result = evaluate(function, call, random_cotangents(function, call))
    assert torch.equal(result["output 0"], torch.zeros_like(result["output 0"]))
    for name in ("d query", "d key"):
        assert torch.equal(result[name], torch.zeros_like(result[name])), name


def test_nan_in_one_window_stays_there() -> None:
    call = attention_call(batch=1, windows=(1, 2), window=(2, 2), kv_heads=1)
    call["key"][0, 0, 0] = torch.nan
    out = vr_kernels.local_attention(**call, backend="triton")
    assert out[0, 0, 0].isnan().all()
    assert out[0, 0, 1].isfinite().all()


@pytest.mark.parametrize("indexed", [False, True])
def test_no_windows_give_an_empty_result(indexed: bool) -> None:
    call = attention_call(indexed=indexed, batch=1)
    call["query"] = call["query"][:0]
    if indexed:
        call["window_index"] = call["window_index"][:0]
    else:
        call["key"] = call["key"][:0]
    result = evaluate(LOCAL_ATTENTION.run("triton"), call, random_cotangents(LOCAL_ATTENTION.run("triton"), call))
    assert result["output 0"].numel() == 0
    assert not result["d key"].any()


@pytest.mark.parametrize("indexed", [False, True])
@CROSS_ATTENTION_KERNELS
def test_repeats_are_bitwise_equal(backend: str, indexed: bool) -> None:
    call = cross_attention_call(batch=1, indexed=indexed, norm="all", saliency="feature")
    function = LOCAL_CROSS_ATTENTION.run(backend)
    cotangents = random_cotangents(function, call)
    first = evaluate(function, call, cotangents)
    for _ in range(5):
        for name, tensor in evaluate(function, call, cotangents).items():
            assert torch.equal(tensor, first[name]), name


def test_larger_windows_are_refused() -> None:
    call = attention_call(batch=1, windows=(1, 1), window=(5, 13))
    with pytest.raises(ValueError, match="windows of up to 64 keys, these have 65"):
        vr_kernels.local_attention(**call, backend="triton")


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the Triton kernels take .* not torch\.float64"):
        vr_kernels.local_attention(**attention_call(dtype=torch.float64), backend="triton")


def test_kernels_load_with_the_first_launch() -> None:
    # torch itself imports triton when it likes: what is asked is whether vr_kernels needs it.
    script = """
import sys, torch, vr_kernels
kernels = "vr_kernels.ops._triton.forward"
query, key = torch.randn(1, 1, 1, 1, 8), torch.randn(1, 2, 2, 1, 8)
vr_kernels.explain(vr_kernels.local_attention, query, key, backend="triton")
assert kernels not in sys.modules
vr_kernels.local_attention(query, key, backend="triton")
assert kernels in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
