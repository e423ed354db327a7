"""``WindowKernel`` by csrc/cpu, and a windowed problem as csrc's structs take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._native import DTYPE_CODES, address, module
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._windows import Windows


class NativeKernel:
    """``WindowKernel`` by csrc/cpu. A call's tensors live in the caller's locals until it returns."""

    def forward(
        self, problem: WindowProblem, query: Tensor, out: Tensor, attention: Tensor, lse: Tensor | None
    ) -> None:
        module().local_attention_forward(struct(problem, query), *map(rows, (query, out, attention, lse)))

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
            struct(problem, grad_out), *map(rows, given), *map(rows, made), address(grad_slots)
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
            struct(problem, query), *map(rows, given), address(grad_keys), address(grad_values)
        )


def rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """A (windows, heads, width) tensor: address, window and head stride."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _level(tensor: Tensor, windows: Windows) -> tuple[int, ...]:
    """A level (*rows, h_kv, D): address, strides of batch, row, column, head and channel, D."""
    strides = tensor.stride()
    if windows.window is None:
        strides = (strides[0], 0, 0, *strides[1:])
    return (tensor.data_ptr(), *strides, tensor.shape[-1])


def struct(problem: WindowProblem, block: Tensor) -> Any:
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
        index=address(index),
        index_is_64bit=index is not None and index.dtype == torch.int64,
        keys=[_level(level, windows) for level in problem.keys],
        values=[_level(level, windows) for level in problem.values],
        query_dtype=DTYPE_CODES[block.dtype],
        feature_dtype=DTYPE_CODES[problem.keys[0].dtype],
        scale=problem.scale,
        attention_bias=address(bias),
        bias_stride_window=bias.stride(0) if bias is not None and bias.dim() == 3 else 0,
        bias_stride_head=windows.slots,
        saliency=address(problem.saliency),
        norm_groups=0 if norm is None else 2 if norm.per_level else 1,
        norm_eps=0.0 if norm is None else norm.eps,
        norm_weight=0 if norm is None else address(norm.weight),
        norm_bias=0 if norm is None else address(norm.bias),
        threads=torch.get_num_threads(),
    )
