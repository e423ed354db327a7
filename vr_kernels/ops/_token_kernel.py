"""What a backend computes on the rows of a stream: the boundary between the drivers and the kernels."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vr_kernels.ops._layout import plain, unit_inner


class TokenProblem(NamedTuple):
    """A stream, the rows that each image names, and the norm; as kernels take them, ``prepare`` makes them so."""

    stream: Tensor  # (B, T, D), unit inner stride
    token_rows: Tensor | None = None  # (I, N) int64, contiguous
    image_sample: Tensor | None = None  # (I,) int64; None: I is B, in order
    norm_weight: Tensor | None = None  # (D,) float32
    norm_eps: float = 0.0

    @classmethod
    def prepare(
        cls,
        stream: Tensor,
        token_rows: Tensor | None = None,
        image_sample: Tensor | None = None,
        norm_weight: Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> TokenProblem:
        return cls(unit_inner(stream), _index(token_rows), _index(image_sample), plain(norm_weight), norm_eps)


def _index(index: Tensor | None) -> Tensor | None:
    if index is None or (index.dtype == torch.int64 and index.is_contiguous()):
        return index  # as it comes, most often: two calls into torch saved
    return index.to(torch.int64).contiguous()


class TokenKernel(Protocol):
    """Tensors but the stream are contiguous, in the stream's dtype unless another is named.

    A number that is no row or sample is padding: zeros, never read. No result depends on the order of threads.
    """

    # The gradient of a norm's weight is summed in parts of so many rows, and then over the parts: in an order that
    # depends on nothing but the sizes.
    rows_per_part: int

    def text_guide(self, problem: TokenProblem, text_mask: Tensor, guide: Tensor, text_row: Tensor) -> None:
        """guide (B, D): the largest number of each channel over the rows of text_mask (B, T); text_row int64: where.

        Of equal ones the lowest row, of NaNs the first. Without text zeros, and -1.
        """

    def gather(self, problem: TokenProblem, guide: Tensor | None, out: Tensor, inverse_rms: Tensor | None) -> None:
        """out (I, N or N+1, D): the rows and then the guide (B, D) of the image's sample, normalised.

        inverse_rms (I, N or N+1) float32 is there with a norm: 1 / sqrt(mean x² + eps), 0 for padding.
        """

    def gather_backward(
        self,
        problem: TokenProblem,
        grad_out: Tensor,
        inverse_rms: Tensor | None,
        text_row: Tensor | None,
        grad_stream: Tensor | None,
        grad_weight: Tensor | None,
    ) -> None:
        """Into grad_stream (B, T, D), zeros so far, and grad_weight (parts, D) float32, of rows_per_part rows each."""

    def scatter_add(self, problem: TokenProblem, update: Tensor, out: Tensor) -> None:
        """out (B, T, D): the stream, update (I, N, D) added to its rows; adding zero leaves every bit."""
