"""The compiled module ``vr_kernels._C``, loaded when first needed, and its windowed attention on the CPU."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._dispatch import Request
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._windows import Windows

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def _import() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("vr_kernels._C"), None
    except ModuleNotFoundError:
        return None, "vr_kernels._C was not built; reinstall vr-kernels with a C++17 compiler at hand"
    except ImportError as error:
        return None, f"vr_kernels._C cannot be imported: {error}"


def module() -> Any:
    """``vr_kernels._C``; raises ImportError in words where there is none."""
    loaded, reason = _import()
    if loaded is None:
        raise ImportError(reason)
    return loaded


def unavailable() -> str | None:
    """Why there is no ``_C``, or None. A graph that is traced takes the answer of its first trace."""
    return _import()[1]


# What torch.compiler.assume_constant_result does; calling it would import the compiler along with this package.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuses_cpu(request: Request) -> str | None:
    """Why the CPU kernels cannot run a call."""
    if request.device != "cpu":
        return f"the CPU kernels take CPU tensors, these are on {request.device}"
    if request.dtype not in DTYPE_CODES:
        return f"the CPU kernels take float32, bfloat16 and float16, not {request.dtype}"
    if request.wrapped is not None:
        return f"the CPU kernels read plain tensors, and a weight is a {request.wrapped}"
    return unavailable()


class NativeKernel:
    """``WindowKernel`` by csrc/cpu. A call's tensors live in the caller's locals until it returns."""

    def forward(
        self, problem: WindowProblem, query: Tensor, out: Tensor, attention: Tensor, lse: Tensor | None
    ) -> None:
        struct = _struct(problem, query)
        module().local_attention_forward(struct, _rows(query), _rows(out), _rows(attention), _rows(lse))

    def backward(
        self,
        problem: WindowProblem,
        grad_out: Tensor,
        attention: Tensor,
        grad_attention: Tensor | None,
        grad_lse: Tensor | None,
        value_constant: Tensor | None,
        grad_scores: Tensor,
        grad_query: Tensor | None,
        pooled: Tensor | None,
        grad_slots: Tensor | None,
    ) -> None:
        given = (grad_out, attention, grad_attention, grad_lse, value_constant)
        made = (grad_scores, grad_query, pooled)
        module().local_attention_backward(
            _struct(problem, grad_out), *map(_rows, given), *map(_rows, made), _address(grad_slots)
        )

    def feature_gradient(
        self,
        problem: WindowProblem,
        query: Tensor,
        grad_out: Tensor,
        attention: Tensor,
        grad_scores: Tensor,
        grad_keys: Tensor,
        grad_values: Tensor | None,
    ) -> None:
        given = (query, grad_out, attention, grad_scores)
        module().local_attention_feature_gradient(
            _struct(problem, query), *map(_rows, given), _address(grad_keys), _address(grad_values)
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """A (windows, heads, width) tensor: address, window and head stride."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _level(tensor: Tensor, windows: Windows) -> tuple[int, ...]:
    """A level (*rows, h_kv, D): address, strides of batch, row, column, head and channel, D."""
    strides = tensor.stride()
    if windows.window is None:
        strides = (strides[0], 0, 0, *strides[1:])
    return (tensor.data_ptr(), *strides, tensor.shape[-1])


def _struct(problem: WindowProblem, block: Tensor) -> Any:
    """csrc/common/local_attention.h's LocalAttention for one block, whose queries (or their gradient) are ``block``."""
    windows, norm = problem.windows, problem.norm
    grid = windows.rows if windows.window is not None else (windows.row_count, 1, 1)
    window_height, window_width = windows.window or (0, 0)
    index, bias = problem.index_of_block(), problem.bias_of_block()
    return module().LocalAttention(
        windows=block.shape[0],
        first_window=problem.first_window,
        heads=block.shape[1],
        kv_heads=problem.keys[0].shape[-2],
        slots=windows.slots,
        batch=grid[0],
        height=grid[1],
        width=grid[2],
        window_height=window_height,
        window_width=window_width,
        index=_address(index),
        index_is_64bit=index is not None and index.dtype == torch.int64,
        keys=[_level(level, windows) for level in problem.keys],
        values=[_level(level, windows) for level in problem.values],
        query_dtype=DTYPE_CODES[block.dtype],
        feature_dtype=DTYPE_CODES[problem.keys[0].dtype],
        scale=problem.scale,
        attention_bias=_address(bias),
        bias_stride_window=bias.stride(0) if bias is not None and bias.dim() == 3 else 0,
        bias_stride_head=windows.slots,
        saliency=_address(problem.saliency),
        norm_groups=0 if norm is None else 2 if norm.per_level else 1,
        norm_eps=0.0 if norm is None else norm.eps,
        norm_weight=0 if norm is None else _address(norm.weight),
        norm_bias=0 if norm is None else _address(norm.bias),
        threads=torch.get_num_threads(),
    )
