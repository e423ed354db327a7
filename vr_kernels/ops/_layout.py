"""Tensors as kernels take them, copied only where they are not so already."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def plain(tensor: Tensor) -> Tensor: ...


@overload
def plain(tensor: Tensor | None) -> Tensor | None: ...


def plain(tensor: Tensor | None) -> Tensor | None:
    """float32, contiguous: how kernels take small auxiliary tensors."""
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def unit_inner(tensor: Tensor) -> Tensor:
    """``tensor`` itself where its last dimension is dense, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
