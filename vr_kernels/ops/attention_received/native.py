"""Attention received on the CPU: GEMMs of torch by blocks of rows, and a pass of importance_received.cpp over each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vr_kernels.ops._native import address, module
from vr_kernels.ops.attention_received import blocked


class NativePass:
    """``ScorePass`` by csrc/cpu, for float32."""

    def forward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, columns: Tensor) -> None:
        module().received_forward(
            **_block(scores, first_row, lse), received=columns.data_ptr(), received_stride=columns.stride(1)
        )

    def backward(self, scores: Tensor, first_row: int | None, lse: Tensor | None, grad: Tensor) -> Tensor:
        total = scores.new_empty(scores.shape[:-1])
        module().received_backward(
            **_block(scores, first_row, lse), grad=grad.data_ptr(), grad_stride=grad.stride(1), total=total.data_ptr()
        )
        return total


def _block(scores: Tensor, first_row: int | None, lse: Tensor | None) -> dict[str, int]:
    kv_heads, groups, rows, columns = scores.shape
    return {
        "scores": scores.data_ptr(),
        "heads": kv_heads * groups,
        "rows": rows,
        "columns": columns,
        "first_row": columns if first_row is None else first_row,
        "lse": address(lse),
        "lse_stride": 0 if lse is None else lse.stride(1),
        "threads": torch.get_num_threads(),
    }


forward = functools.partial(blocked.forward, score_pass=NativePass())
backward = functools.partial(blocked.backward, score_pass=NativePass())
