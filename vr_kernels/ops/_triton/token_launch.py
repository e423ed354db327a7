"""``TokenKernel`` by Triton: grids and tile sizes. The kernels are imported with the first launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._token_kernel import TokenProblem
from vr_kernels.ops._tokens import TokenRequest
from vr_kernels.ops._triton import support
from vr_kernels.ops._triton.configurations import padded

# A row waits in registers: 16 numbers a thread of sixteen warps.
LARGEST_WIDTH = 8192


def refuses(request: TokenRequest) -> str | None:
    """Why the Triton kernels cannot run a call."""
    if request.width > LARGEST_WIDTH:
        return f"the Triton kernels take rows of up to {LARGEST_WIDTH} channels, these have {request.width}"
    return support.refuses(request)


class TritonTokens:
    """``TokenKernel`` by Triton."""

    rows_per_part = 4  # few, so that a few hundred rows are programs for a whole GPU

    def text_guide(self, problem: TokenProblem, text_mask: Tensor, guide: Tensor, text_row: Tensor) -> None:
        from vr_kernels.ops._triton import tokens as kernels

        batch, length, width = problem.stream.shape
        block_d = min(64, _row_block(width)["BLOCK_D"])
        if batch > 0:
            with torch.cuda.device_of(guide):
                kernels.text_guide[(batch * -(-width // block_d),)](
                    **_stream(problem) | {"length": length},  # of no row too
                    p_mask=text_mask.view(torch.uint8),
                    p_guide=guide,
                    p_text_row=text_row,
                    WIDTH=width,
                    BLOCK_T=32,
                    BLOCK_D=block_d,
                    num_warps=4,
                )

    def gather(self, problem: TokenProblem, guide: Tensor | None, out: Tensor, inverse_rms: Tensor | None) -> None:
        from vr_kernels.ops._triton import tokens as kernels

        rows = out.shape[0] * out.shape[1]
        if rows > 0:
            with torch.cuda.device_of(out):
                kernels.gather[(rows,)](
                    **_stream(problem),
                    **_rows(problem),
                    p_guide=guide,
                    p_weight=problem.norm_weight,
                    p_out=out,
                    p_inverse_rms=inverse_rms,
                    eps=problem.norm_eps,
                    **_row_block(out.shape[-1]),
                )

    def gather_backward(
        self,
        problem: TokenProblem,
        grad_out: Tensor,
        inverse_rms: Tensor | None,
        text_row: Tensor | None,
        grad_stream: Tensor | None,
        grad_weight: Tensor | None,
    ) -> None:
        from vr_kernels.ops._triton import tokens as kernels

        images, rows_per_image, width = grad_out.shape
        rows = images * rows_per_image
        if rows == 0:
            return
        grad_guide = None if text_row is None else grad_out.new_empty(images, width, dtype=torch.float32)
        with torch.cuda.device_of(grad_out):
            kernels.gather_backward[(-(-rows // self.rows_per_part),)](
                **_stream(problem),
                **_rows(problem),
                p_text_row=text_row,
                p_weight=problem.norm_weight,
                p_grad_out=grad_out,
                p_inverse_rms=inverse_rms,
                p_grad_guide=grad_guide,
                p_grad_stream=grad_stream,
                p_grad_weight=grad_weight,
                out_rows=rows,
                ROWS=self.rows_per_part,
                **_row_block(width),
            )
            if grad_guide is not None and grad_stream is not None and grad_stream.shape[0] > 0:
                block_d = min(256, _row_block(width)["BLOCK_D"])
                kernels.add_guide[(grad_stream.shape[0] * -(-width // block_d),)](
                    p_grad_guide=grad_guide,
                    p_sample=problem.image_sample,
                    p_text_row=text_row,
                    p_grad_stream=grad_stream,
                    length=problem.stream.shape[1],
                    images=images,
                    WIDTH=width,
                    BLOCK_D=block_d,
                )

    def scatter_add(self, problem: TokenProblem, update: Tensor, out: Tensor) -> None:
        from vr_kernels.ops._triton import tokens as kernels

        out.copy_(problem.stream)
        batch, length, width = problem.stream.shape
        if update.numel() > 0:
            with torch.cuda.device_of(out):
                kernels.scatter_add[(update.shape[0] * update.shape[1],)](
                    **_stream(problem),
                    p_rows=problem.token_rows,
                    p_update=update,
                    p_out=out,
                    row_count=batch * length,
                    **_row_block(width),
                )


def _stream(problem: TokenProblem) -> dict[str, Any]:
    stream = problem.stream
    strides = {"stride_sample": stream.stride(0), "stride_row": stream.stride(1)}
    return {"p_stream": stream, **strides, "length": max(stream.shape[1], 1)}  # a divisor


def _rows(problem: TokenProblem) -> dict[str, Any]:
    assert problem.token_rows is not None
    batch, length, _ = problem.stream.shape
    return {
        "p_rows": problem.token_rows,
        "p_sample": problem.image_sample,
        "tokens": problem.token_rows.shape[1],
        "row_count": batch * length,
        "batch": batch,
    }


def _row_block(width: int) -> dict[str, int]:
    """The smallest power of two that holds a row, and eight numbers of it a thread while there are warps."""
    block = padded(width)
    return {"WIDTH": width, "BLOCK_D": block, "num_warps": min(16, max(1, block // 256))}
