"""Triton's interpreter with an honest bfloat16.

It keeps bfloat16 as uint16 bits, and multiplies, adds and converts those as if they were numbers (triton 3.6 and 3.7);
its casts to bfloat16 truncate. Here each operation decodes to float32 and rounds its result to nearest even, as a GPU
does; reductions, which a GPU carries out in an order of its own, are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle


def decode(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(numbers: np.ndarray) -> np.ndarray:
    """Numbers -> bfloat16 bits, rounded to nearest, ties to even. NaN stays NaN."""
    single = np.ascontiguousarray(numbers, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16)


def _is_bfloat16(handle: TensorHandle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _decoded(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(decode(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _computed_in_float32(method: Any) -> Any:
    """A builder method whose bfloat16 operands come in decoded and whose result, unless a mask, goes out encoded."""

    def call(builder: InterpreterBuilder, *operands: Any) -> TensorHandle:
        handles = [operand for operand in operands if isinstance(operand, TensorHandle)]
        if not any(map(_is_bfloat16, handles)):
            return method(builder, *operands)
        result = method(builder, *(_decoded(x) if isinstance(x, TensorHandle) else x for x in operands))
        return result if result.data.dtype == np.bool_ else TensorHandle(encode(result.data), tl.bfloat16)

    return call


def _dot(method: Any) -> Any:
    def call(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: Any) -> TensorHandle:
        return method(builder, _decoded(a), _decoded(b), *others)  # the accumulator is float32

    return call


def _cast(method: Any) -> Any:
    def call(builder: InterpreterBuilder, source: TensorHandle, target: Any, *rounding: Any) -> TensorHandle:
        if target.scalar == tl.bfloat16:
            return source if _is_bfloat16(source) else TensorHandle(encode(source.data), tl.bfloat16)
        return method(builder, _decoded(source), target, *rounding)

    return call


def _reduce(method: Any) -> Any:
    def call(reduction: ReduceOps, inputs: Any) -> Any:
        if any(_is_bfloat16(tensor.handle) for tensor in inputs):
            raise TypeError("a reduction of bfloat16: cast to float32 first")
        return method(reduction, inputs)

    return call


def install() -> None:
    """Patch the interpreter of this process."""
    for name in ("binary_op", "unary_op", "create_fma"):
        setattr(InterpreterBuilder, name, _computed_in_float32(getattr(InterpreterBuilder, name)))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
    ReduceOps.apply_impl = _reduce(ReduceOps.apply_impl)
