"""Token rows of a padded batch: which rows of the stream a call reads or writes, and what may be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._arguments import Arguments, Signature, is_readable, refuse_outside
from vr_kernels.ops._dispatch import Request
from vr_kernels.ops._native import index_fits


def stream_of(arguments: Arguments, value: Any) -> Signature:
    """hidden_states (B, T, D)."""
    got = arguments.tensor("hidden_states", value)
    arguments.floating("hidden_states", got)
    arguments.rank("hidden_states", got, {3: "(B, T, D)"})
    if got.shape[2] == 0:
        raise arguments.error(f"hidden_states has shape {got.shape}; its width must be at least 1")
    return got


def token_rows_of(arguments: Arguments, value: Any, stream: Signature) -> tuple[int, int]:
    """The sizes of token_rows (I, N)."""
    got = arguments.index("token_rows", value, stream)
    arguments.rank("token_rows", got, {2: "(I, N), row b*T + t of each vision token of each image, -1 = padding"})
    return got.shape[0], got.shape[1]


def check_guide(arguments: Arguments, text_mask: Any, image_sample: Any, stream: Signature, images: int) -> None:
    """text_mask (B, T) and image_sample (I,), which may be absent where each image is a sample."""
    batch, length = stream.shape[:2]
    arguments.mask("text_mask", text_mask, stream, (batch, length))
    if image_sample is not None:
        sample = arguments.index("image_sample", image_sample, stream)
        if sample.shape != (images,):
            raise arguments.error(f"image_sample has shape {sample.shape}; it must be {(images,)}, a sample an image")
    elif text_mask is not None and images != batch:
        raise arguments.error(
            f"token_rows has {images} images, hidden_states {batch} samples, and image_sample is None; "
            "give the sample of each image"
        )


@dataclass(frozen=True, kw_only=True)
class TokenRequest(Request):
    """A call on a stream's rows, as its backends see it."""

    width: int


def typical_request(device: str, dtype: torch.dtype) -> TokenRequest:
    """The stream of Vision Remember's smallest language model."""
    return TokenRequest(device, dtype, width=896)


def check_token_rows(operator: str, token_rows: Tensor, row_count: int, name: str = "token_rows") -> None:
    """Refuse rows outside the stream, and rows named twice: their sums would depend on the order of the writes."""
    if not is_readable(token_rows) or token_rows.numel() == 0:
        return
    if index_fits(token_rows, -1, row_count, distinct=True):
        return
    allowed = f"-1 (padding) or a row of hidden_states in [0, {row_count})"
    refuse_outside(operator, name, token_rows, -1, row_count, allowed)
    uses = torch.bincount(token_rows.flatten() + 1)[1:]  # padding first, and dropped
    if uses.numel() > 0 and int(uses.max()) > 1:
        raise ValueError(f"{operator}: {name} names row {int(uses.argmax())} more than once; a row may stand once")


def check_image_sample(operator: str, image_sample: Tensor | None, batch: int) -> None:
    """Refuse samples outside the batch."""
    if image_sample is None or not is_readable(image_sample) or index_fits(image_sample, 0, batch):
        return
    refuse_outside(operator, "image_sample", image_sample, 0, batch, f"a sample in [0, {batch})")


def read_rows(stream: Tensor, rows: Tensor) -> Tensor:
    """stream (M, D) at rows (...) -> (..., D); a number that is no row gives zeros and is never read."""
    present = (rows >= 0) & (rows < stream.shape[0])
    if stream.shape[0] == 0:
        return stream.new_zeros(*rows.shape, stream.shape[1])
    return stream[rows.where(present, 0)].masked_fill(~present[..., None], 0)
