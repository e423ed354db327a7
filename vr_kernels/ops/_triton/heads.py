"""Heads (B, N, h, d) or packed (T, h, d) of any strides, as the kernels on whole sequences take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vr_kernels.ops._importance import ImportanceRequest
from vr_kernels.ops._triton import support
from vr_kernels.ops._triton.configurations import padded

LARGEST_HEAD = 256  # channels: a head's are loaded at once


class Heads(NamedTuple):
    """Rows of channels; strides count elements. A packed tensor's sequences are no distance apart."""

    pointer: Tensor
    sequence: int
    token: int
    head: int
    channel: int

    @classmethod
    def of(cls, tensor: Tensor) -> Heads:
        return cls(tensor, *((0,) * (4 - tensor.dim())), *tensor.stride())


def refuses(request: ImportanceRequest) -> str | None:
    """Why the Triton kernels cannot run a call."""
    if request.width > LARGEST_HEAD:
        return f"the Triton kernels take heads of up to {LARGEST_HEAD} channels, these have {request.width}"
    return support.refuses(request)


def head_block(width: int) -> dict[str, int]:
    """The smallest power of two that holds a head and that a tensor core takes."""
    return {"WIDTH": width, "BLOCK_D": padded(width)}


def tensor_cores(dtype: torch.dtype, *, gradient: bool) -> bool:
    """Whether products have half operands. A gradient's have not in float16, which cannot hold its small numbers."""
    return dtype == torch.bfloat16 or (dtype == torch.float16 and not gradient)
