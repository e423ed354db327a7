"""The CUDA kernels' own source on a CPU: csrc/cuda compiled as C++ against the machine in twin/.

Backend "twin" is "cuda" on it, and "twin_fused" is "cuda_fused".
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
import pytest
from torch import Tensor

from vr_kernels.ops import _dispatch, _native
from vr_kernels.ops._cuda import CudaKernel
from vr_kernels.ops._cuda_fused import CudaFusedKernel
from vr_kernels.ops._dispatch import Backend
from vr_kernels.ops.local_attention import op as attention
from vr_kernels.ops.local_cross_attention import op as cross_attention
from vr_kernels.ops.local_cross_attention.fused import FusedEngine

CSRC = Path(__file__).parents[2] / "csrc"
TWIN = Path(__file__).parent / "twin"
SANITIZED = _native.unavailable() is None and _native.module().build_info()["sanitizer"]
SANITIZERS = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"]
# Not for the bindings, which are pybind11's templates: it takes long over them.
KERNEL_SANITIZERS = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]

# What a device may have, by ``set_shared_memory``: the least that a block takes, half of what an sm_120 has, and of an
# sm_90.
SHARED_MEMORY = [0, 50_000, 113_000]


def build(output: Path) -> None:
    """Compile the module _twin into ``output``, with the sanitizers where vr_kernels._C has them."""
    sources = [*CSRC.glob("cuda/local_*.cu"), CSRC / "bindings_cuda.cpp", *TWIN.glob("*.cpp")]
    # Headers of the same name are found in twin/ first. A GPU contracts a * b + c as well.
    includes = [f"-I{path}" for path in (TWIN, CSRC, pybind11.get_include(), sysconfig.get_path("include"))]
    flags = ["-std=c++17", "-O1", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas"]
    compiler = os.environ.get("CXX", "c++")

    def sanitizers(source: Path) -> list[str]:
        binds = source.name in ("bindings_cuda.cpp", "module.cpp")
        more = ["-Wno-maybe-uninitialized"] if binds else KERNEL_SANITIZERS  # GCC 12 errs in pybind11: CMakeLists.txt
        return SANITIZERS + more if SANITIZED else []

    def compiled(source: Path) -> Path:
        target = output.with_name(f"{source.name}.o")
        options = [*flags, *sanitizers(source), *includes]
        subprocess.run([compiler, *options, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    linked = SANITIZERS + KERNEL_SANITIZERS if SANITIZED else []
    subprocess.run([compiler, "-shared", *linked, *objects, "-o", output], check=True)


def load(path: Path) -> Any:
    """The module that ``build`` made."""
    spec = importlib.util.spec_from_file_location("_twin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TwinLauncher:
    """The twin in place of the GPU."""

    def __init__(self, twin: Any) -> None:
        self.twin = twin

    def library(self) -> Any:
        return self.twin

    def stream(self, tensor: Tensor) -> tuple[int, int]:
        return 0, 0


class TwinKernel(TwinLauncher, CudaKernel):
    pass


class TwinFusedKernel(TwinLauncher, CudaFusedKernel):
    pass


def add_backends(twin: Any, patch: pytest.MonkeyPatch) -> None:
    """Give the windowed operators their backends on the twin, for as long as ``patch`` holds."""
    kernel = TwinKernel(twin)
    patch.setitem(attention.KERNELS, "twin", kernel)
    engine = dataclasses.replace(cross_attention.ENGINES["cuda"], kernel=kernel)
    patch.setitem(cross_attention.ENGINES, "twin", engine)
    patch.setitem(cross_attention.FUSED, "twin_fused", FusedEngine(TwinFusedKernel(twin), engine))
    for name, backends in (("local_attention", ["twin"]), ("local_cross_attention", ["twin", "twin_fused"])):
        module = sys.modules[f"vr_kernels.ops.{name}"]  # the package's attribute of that name is the function
        operator = dataclasses.replace(module.OPERATOR, backends=(*module.OPERATOR.backends, *map(Backend, backends)))
        patch.setattr(module, "OPERATOR", operator)
        patch.setitem(_dispatch._operators, getattr(module, name), operator)
    twin.set_order(0)
    twin.set_shared_memory(100_000)
