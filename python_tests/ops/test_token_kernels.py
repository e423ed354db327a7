"""What holds for all kernels on token rows: every instruction set, no copy of the stream, fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import DTYPES
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import GATHER_TOKENS, TOKENS, Subject, over
from python_tests._token_cases import gather_call
from vr_kernels import _C
from vr_kernels.ops._token_kernel import TokenProblem
from vr_kernels.ops._token_native import NativeTokens

over_tokens = over(TOKENS)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.mark.parametrize("isa", _C.cpu_features()["available"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_tokens
def test_each_instruction_set_obeys_the_error_rule(subject: Subject, dtype: torch.dtype, isa: str) -> None:
    subject.assert_obeys_the_error_rule(
        "cpu",
        lambda seed: subject.call(seed, dtype=dtype, width=97, **subject.mixes["everything"]),
        norms=["root_mean_square"],
    )


def test_instruction_sets_differ_in_rounding() -> None:
    # If no bit differed, set_isa would choose nothing.
    available = _C.cpu_features()["available"]
    if len(available) == 1:
        pytest.skip("this processor has the baseline alone")
    call = gather_call(norm=True, guide=True, width=301)
    function = GATHER_TOKENS.run("cpu")
    cotangents = random_cotangents(function, call)
    results, before = [], _C.isa()
    for isa in ("baseline", available[-1]):
        _C.set_isa(isa)
        results.append(evaluate(function, call, cotangents))
    _C.set_isa(before)
    assert any(not torch.equal(results[0][name], results[1][name]) for name in results[0])


@over_tokens
def test_a_stream_without_its_first_row_is_not_copied(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    for method in ("text_guide", "gather", "gather_backward", "scatter_add"):
        original = getattr(NativeTokens, method)

        def record(kernel: NativeTokens, problem: TokenProblem, *rest: Any, original: Any = original) -> None:
            seen.add(problem.stream.data_ptr())
            original(kernel, problem, *rest)

        monkeypatch.setattr(NativeTokens, method, record)
    call = subject.call(**subject.mixes["everything"])
    longer = torch.cat([call["hidden_states"][:, :1], call["hidden_states"]], 1)
    call["hidden_states"] = longer[:, 1:]
    assert not call["hidden_states"].is_contiguous()
    subject.run("cpu")(**call)
    assert seen == {call["hidden_states"].data_ptr()}


def on_cuda(call: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, Tensor) else value
        for name, value in call.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_tokens
def test_on_cuda_results_have_the_reference_s_shapes_and_dtypes(subject: Subject, dtype: torch.dtype) -> None:
    drawn = subject.call(dtype=dtype, **subject.mixes["everything"])
    expected = subject.run("reference")(**drawn)
    with FakeTensorMode():
        results = subject.run("triton")(**on_cuda(drawn))
    assert [(r.shape, r.dtype, r.device.type) for r in results] == [(r.shape, r.dtype, "cuda") for r in expected]


@over_tokens
def test_on_cuda_the_definition_is_chosen_until_a_kernel_is_measured(subject: Subject) -> None:
    with FakeTensorMode():
        explanation = vr_kernels.explain(subject.function, **on_cuda(subject.call()))
    assert explanation.chosen == "reference"
    assert explanation.reasons["triton"] == "by name only: experimental: never measured on a GPU"
    assert "these are on cuda" in explanation.reasons["cpu"]


def test_triton_refuses_rows_that_do_not_fit_the_registers() -> None:
    with FakeTensorMode():
        call = on_cuda(gather_call(width=8193))
        with pytest.raises(ValueError, match="rows of up to 8192 channels, these have 8193"):
            vr_kernels.gather_tokens(**call, backend="triton")
