"""Whether Triton can run a call, asked without importing it."""

from __future__ import annotations

import importlib.metadata
import os

from vr_kernels.ops._dispatch import Request, refuses_tensors
from vr_kernels.ops._triton.configurations import LARGEST_WINDOW
from vr_kernels.ops._windows import WindowRequest

OLDEST, TOO_NEW = (3, 6), (3, 8)


def refuses(request: Request) -> str | None:
    """Why the Triton kernels cannot run a call. Triton's interpreter (TRITON_INTERPRET=1) takes CPU tensors too."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return refuses_tensors(request, "Triton", ["cuda", "cpu"] if interpreted else ["cuda"]) or unavailable()


def refuses_windows(request: WindowRequest) -> str | None:
    """Why the windowed Triton kernels cannot run a call."""
    if request.windows.slots > LARGEST_WINDOW:
        return f"the Triton kernels take windows of up to {LARGEST_WINDOW} keys, these have {request.windows.slots}"
    return refuses(request)


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
