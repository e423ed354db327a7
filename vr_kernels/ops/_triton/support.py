"""Whether Triton can run a call, asked without importing it."""

from __future__ import annotations

import importlib.metadata
import os

import torch

from vr_kernels.ops._dispatch import Request
from vr_kernels.ops._triton.configurations import LARGEST_WINDOW
from vr_kernels.ops._windows import WindowRequest

OLDEST, TOO_NEW = (3, 6), (3, 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(request: Request) -> str | None:
    """Why the Triton kernels cannot run a call. Triton's interpreter (TRITON_INTERPRET=1) takes CPU tensors too."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.device != "cuda" and not (interpreted and request.device == "cpu"):
        return f"the Triton kernels take CUDA tensors, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"the Triton kernels take float32, bfloat16 and float16, not {request.dtype}"
    if request.wrapped is not None:
        return f"the Triton kernels read plain tensors, and a weight is a {request.wrapped}"
    return unavailable()


def refuses_windows(request: WindowRequest) -> str | None:
    """Why the windowed Triton kernels cannot run a call."""
    if request.windows.slots > LARGEST_WINDOW:
        return f"the Triton kernels take windows of up to {LARGEST_WINDOW} keys, these have {request.windows.slots}"
    return refuses(request)


def experimental(request: Request) -> str | None:
    """Why no call chooses Triton by itself: a GPU backend is preferred only where a measurement says that it wins."""
    return "experimental: never measured on a GPU"


def unavailable() -> str | None:
    """Why there is no Triton that the kernels were tested with, or None. A graph takes its first trace's answer."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed; pip install 'vr-kernels[triton]'"
    release = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= release < TOO_NEW:
        return f"triton {version} is installed; it must be at least 3.6 and below 3.8"
    return None


# What torch.compiler.assume_constant_result does; calling it would import the compiler along with this package.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]
