"""Triton's compiler without a GPU: the library's own launches, compiled for a chosen GPU and recorded, not run.

The calls are made on meta tensors, so that types, strides, alignment and tile sizes are those that a real call would
have: a signature written down in a test would only be a copy of them.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: what its program says and what it takes."""

    name: str
    ptx: str
    cubin: bytes
    shared_bytes: int  # dynamic: the driver's launch asks for it

    @functools.cached_property
    def resources(self) -> dict[str, int]:
        """Registers a thread (REG) and bytes of stack a thread (STACK, LOCAL), which is where spilled registers go."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [_CUOBJDUMP, "--dump-resource-usage", file.name]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}

    def count(self, instruction: str) -> int:
        """Occurrences of a PTX instruction, given as a regular expression."""
        return len(re.findall(instruction, self.ptx))


class _Device:
    """What a launch asks of a driver before it compiles. Architectures are devices here, by which triton caches."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launches(architecture: int, call: Callable[[], Any]) -> list[Kernel]:
    """Every kernel that ``call`` launches, each compiled variant once."""
    compiled: dict[int, Any] = {}
    run = JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(function, *args, grid=grid, warmup=True, **kwargs)
        compiled[id(kernel)] = kernel
        return kernel

    driver.set_active(_Device(architecture))  # and never reset: triton would look for a real one
    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run = run
    return [
        Kernel(kernel.metadata.name, kernel.asm["ptx"], kernel.asm["cubin"], kernel.metadata.shared)
        for kernel in compiled.values()
    ]
