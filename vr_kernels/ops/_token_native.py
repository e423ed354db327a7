"""``TokenKernel`` by csrc/cpu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._native import DTYPE_CODES, address, module
from vr_kernels.ops._token_kernel import TokenProblem


class NativeTokens:
    """``TokenKernel`` by csrc/cpu. A call's tensors live in the caller's locals until it returns."""

    rows_per_part = 32  # csrc/common/tokens.h says the same

    def text_guide(self, problem: TokenProblem, text_mask: Tensor, guide: Tensor, text_row: Tensor) -> None:
        module().text_guide(_struct(problem), address(text_mask), address(guide), address(text_row))

    def gather(self, problem: TokenProblem, guide: Tensor | None, out: Tensor, inverse_rms: Tensor | None) -> None:
        module().gather_tokens(_struct(problem), address(guide), address(out), address(inverse_rms))

    def gather_backward(
        self,
        problem: TokenProblem,
        grad_out: Tensor,
        inverse_rms: Tensor | None,
        text_row: Tensor | None,
        grad_stream: Tensor | None,
        grad_weight: Tensor | None,
    ) -> None:
        images, width = grad_out.shape[0], grad_out.shape[-1]
        grad_guide = None if text_row is None else grad_out.new_empty(images, width, dtype=torch.float32)
        given = (grad_out, inverse_rms, text_row, grad_guide)
        module().gather_tokens_backward(
            _struct(problem), *map(address, given), address(grad_stream), address(grad_weight)
        )

    def scatter_add(self, problem: TokenProblem, update: Tensor, out: Tensor) -> None:
        module().scatter_add_tokens(_struct(problem), address(update), address(out))


def _struct(problem: TokenProblem) -> Any:
    """csrc/common/tokens.h's TokenRows."""
    stream, rows = problem.stream, problem.token_rows
    batch, length, width = stream.shape
    images, tokens = (0, 0) if rows is None else rows.shape
    return module().TokenRows(
        stream=stream.data_ptr(),
        stride_sample=stream.stride(0),
        stride_row=stream.stride(1),
        batch=batch,
        length=length,
        width=width,
        dtype=DTYPE_CODES[stream.dtype],
        rows=address(rows),
        images=images,
        tokens=tokens,
        sample_of_image=address(problem.image_sample),
        norm_weight=address(problem.norm_weight),
        norm_eps=problem.norm_eps,
        threads=torch.get_num_threads(),
    )
