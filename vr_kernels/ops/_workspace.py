"""Memory that one thread reuses from call to call: freshly mapped pages cost more than what is computed into them."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_local = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor in this thread's buffer ``name``, valid until the thread asks for that name again.

    A buffer grows to the largest size asked for; callers bound that (the blocks of local cross-attention: 40 MB).
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)  # torch's allocator reuses device memory by stream
    buffers: dict[str, Tensor] = _local.__dict__
    needed = math.prod(shape) * dtype.itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() < needed:
        with torch.inference_mode(False):  # an inference tensor could not be written to by a later training step
            buffer = buffers[name] = torch.empty(needed, dtype=torch.uint8)
    return buffer[:needed].view(dtype).view(shape)
