"""``scatter_add_tokens``: what is named gets the sum, rounded once; every other bit stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests._cases import DTYPES
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import SCATTER_ADD_TOKENS, Subject, over_backends
from python_tests._token_cases import scatter_call

runs = over_backends("reference", subjects=[SCATTER_ADD_TOKENS])


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@runs
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_adding_zero_changes_no_bit(subject: Subject, backend: str, zero: float, dtype: torch.dtype) -> None:
    if backend != "reference" and dtype == torch.float64:
        pytest.skip("the kernels take no float64")
    call = scatter_call(dtype=dtype)
    stream = call["hidden_states"]
    stream[..., 0], stream[..., 1], stream[..., 2] = -0.0, 0.0, torch.inf
    stream[..., 3] = torch.finfo(dtype).smallest_normal / 4
    call["update"].fill_(zero)
    (out,) = subject.run(backend)(**call)
    assert torch.equal(bits(out), bits(stream))


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_named_rows_get_the_sum_rounded_once_and_others_stay(
    subject: Subject, backend: str, dtype: torch.dtype
) -> None:
    call = scatter_call(dtype=dtype, images=5)
    stream, rows = call["hidden_states"].flatten(0, 1), call["token_rows"]
    present = rows >= 0
    unnamed = torch.ones(len(stream), dtype=torch.bool).index_fill(0, rows[present], False)
    stream[unnamed] = torch.nan
    (out,) = subject.run(backend)(**call)
    out = out.flatten(0, 1)
    assert torch.equal(out[rows[present]], stream[rows[present]] + call["update"][present])
    assert torch.equal(bits(out[unnamed]), bits(stream[unnamed]))


@runs
def test_the_input_is_never_written(subject: Subject, backend: str) -> None:
    call = scatter_call()
    before = {name: tensor.clone() for name, tensor in call.items()}
    (out,) = subject.run(backend)(**call)
    assert all(torch.equal(call[name], tensor) for name, tensor in before.items())
    assert out.data_ptr() != call["hidden_states"].data_ptr()


@runs
def test_a_zero_update_learns(subject: Subject, backend: str) -> None:
    call = scatter_call()
    call["update"].zero_()
    call["hidden_states"].zero_()
    result = evaluate(subject.run(backend), call, [torch.ones_like(call["hidden_states"])])
    assert torch.equal(result["d update"], (call["token_rows"] >= 0)[..., None].float().expand(3, 4, 7))
    assert torch.equal(result["d hidden_states"], torch.ones(3, 11, 7))


@runs
def test_what_padding_carries_does_not_matter(subject: Subject, backend: str) -> None:
    call = scatter_call()
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    call["update"][call["token_rows"] < 0] = torch.nan
    result = evaluate(function, call, cotangents)
    for name in expected:
        assert torch.equal(result[name], expected[name]), name


@runs
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 1)], ids=str)
@pytest.mark.parametrize("tokens", [(0, 4), (2, 0), (2, 1)], ids=str)
def test_empty_streams_and_updates(
    subject: Subject, backend: str, shape: tuple[int, int, int], tokens: tuple[int, int]
) -> None:
    stream = torch.randn(shape, requires_grad=True)
    update = torch.randn(*tokens, shape[2], requires_grad=True)
    rows = torch.full(tokens, -1)
    out = vr_kernels.scatter_add_tokens(stream, rows, update, backend=backend)
    assert torch.equal(out, stream)
    out.sum().backward()
    assert update.grad is not None
    assert not update.grad.any()


@runs
def test_strides_change_nothing(subject: Subject, backend: str) -> None:
    call = scatter_call(width=9)
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    strided = {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in call.items()}
    strided["token_rows"] = strided["token_rows"].int()
    broadcast = [d.transpose(0, -1).contiguous().transpose(0, -1) for d in cotangents]
    for name, result in evaluate(function, strided, broadcast).items():
        assert torch.equal(result, expected[name]), name


@runs
def test_the_sum_of_the_output_has_a_gradient_of_ones(subject: Subject, backend: str) -> None:
    call = scatter_call()
    call["update"].requires_grad_()
    subject.run(backend)(**call)[0].sum().backward()  # its gradient is one number, expanded
    assert call["update"].grad.unique().tolist() == [0.0, 1.0]


def test_autocast_casts_the_update_to_the_stream() -> None:
    call = scatter_call()
    narrow = call["update"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = vr_kernels.scatter_add_tokens(call["hidden_states"], call["token_rows"], narrow)
    assert torch.equal(out, vr_kernels.scatter_add_tokens(**(call | {"update": narrow.float()})))
