"""The interpreter's patched bfloat16 is torch's: casts and arithmetic round to nearest even, dots are of numbers."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = 4096
# Ties, the largest finite number and what rounds past it, subnormals, zeros, infinities, NaN.
SPECIAL = [1.00390625, 1.01171875, 3.3895314e38, 3.4e38, 1e-40, -1e-40, 0.0, -0.0, torch.inf, -torch.inf, torch.nan]


def numbers(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(torch.randn(SIZE, generator=generator) * 8)
    values = torch.randn(SIZE, generator=generator) * scales
    values[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return values


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@triton.jit
def _cast(p_in, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_out + i, tl.load(p_in + i).to(p_out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_a_cast_to_bfloat16_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    given = torch.randint(-(2**31), 2**31, (SIZE,)).to(dtype) if dtype == torch.int32 else numbers(0).to(dtype)
    result = torch.empty(SIZE, dtype=torch.bfloat16)
    _cast[(1,)](given, result, SIZE)
    assert_same(result, given.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_cast_from_bfloat16_keeps_the_number(dtype: torch.dtype) -> None:
    given = numbers(1).to(torch.bfloat16)
    result = torch.empty(SIZE, dtype=dtype)
    _cast[(1,)](given, result, SIZE)
    assert_same(result, given.to(dtype))


@triton.jit
def _arithmetic(p_a, p_b, p_out, SIZE: tl.constexpr, OPERATION: tl.constexpr):
    i = tl.arange(0, SIZE)
    a = tl.load(p_a + i)
    b = tl.load(p_b + i)
    if OPERATION == "add":
        c = a + b
    elif OPERATION == "subtract":
        c = a - b
    elif OPERATION == "multiply":
        c = a * b
    elif OPERATION == "greater":
        c = a > b
    else:
        c = tl.where(a > b, a, b)
    tl.store(p_out + i, c)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", torch.add),
        ("subtract", torch.sub),
        ("multiply", torch.mul),
        ("greater", torch.gt),
        ("where", lambda a, b: torch.where(a > b, a, b)),
    ],
)
def test_arithmetic_rounds_each_result(name: str, expected) -> None:
    a, b = numbers(2).to(torch.bfloat16), numbers(3).to(torch.bfloat16)
    exact = expected(a, b)
    result = torch.empty_like(exact)
    _arithmetic[(1,)](a, b, result, SIZE, name)
    assert_same(result, exact)


@triton.jit
def _dot(p_a, p_b, p_out, SIDE: tl.constexpr):
    i = tl.arange(0, SIDE)
    o = i[:, None] * SIDE + i[None, :]
    tl.store(p_out + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o)))


def test_a_dot_multiplies_numbers_and_accumulates_in_float32() -> None:
    a, b = (torch.randn(64, 64).to(torch.bfloat16) for _ in range(2))
    result = torch.empty(64, 64)
    _dot[(1,)](a, b, result, 64)
    torch.testing.assert_close(result, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)


@triton.jit
def _sum(p_in, p_out, SIZE: tl.constexpr):
    tl.store(p_out, tl.sum(tl.load(p_in + tl.arange(0, SIZE))))


def test_a_reduction_of_bfloat16_is_refused() -> None:
    with pytest.raises(Exception, match="cast to float32 first"):
        _sum[(1,)](torch.rand(SIZE).to(torch.bfloat16), torch.empty(1), SIZE)
