"""What the CUDA compiler made of the kernels, read off the module that is installed."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vr_kernels.ops import _native

BUILD = _native.module().build_info()
ARCHITECTURES = [name for name in BUILD["cuda_architectures"] if name.startswith("sm_")]
TRITON = importlib.util.find_spec("triton")

pytestmark = [
    pytest.mark.skipif(not BUILD["cuda"], reason="vr_kernels._C was built without a CUDA compiler"),
    pytest.mark.skipif(TRITON is None, reason="cuobjdump comes with triton, which is not installed"),
]
on_every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

# Kernels with tensor cores, by the way their matrices lie in shared memory: LDSM reads them as they lie, or transposed.
AS_THEY_LIE, TRANSPOSED = "LDSM.16.M88.4", "LDSM.16.MT88.4"
WINDOW_KERNELS = ("forward_kernel", "backward_kernel")
LOADS = dict.fromkeys(WINDOW_KERNELS, (AS_THEY_LIE, TRANSPOSED)) | {
    "scores_kernel": (AS_THEY_LIE, TRANSPOSED),  # x by its rows, W by its terms
    "project_kernel": (AS_THEY_LIE,),  # g by its rows, W by its rows
    "outer_kernel": (TRANSPOSED,),  # x by its terms, g by its terms
}
FUSED_KERNELS = ("scores_kernel", "project_kernel", "outer_kernel")

# How many of each: three dtypes; the window kernels with room for 16 and for 64 slots.
COUNTS = dict.fromkeys(WINDOW_KERNELS, 6) | dict.fromkeys(
    ("disjoint_kernel", "overlapping_kernel", "statistics_kernel", *FUSED_KERNELS), 3
)


def most_registers(name: str) -> int:
    """Of a thread: blocks of 128 threads share 65,536. The fused kernels' sums leave room for two, others for three."""
    return 255 if any(kernel in name for kernel in FUSED_KERNELS) else 168


def cuobjdump(*arguments: str) -> str:
    assert TRITON is not None
    assert TRITON.origin is not None
    program = Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump"
    command = [program, *arguments, _native.module().__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def kernels(architecture: str) -> dict[str, str]:
    """The machine code of every kernel of this library, by its mangled name."""
    functions = re.split(r"Function : (\S+)", cuobjdump("--dump-sass", "--gpu-architecture", architecture))
    return {name: code for name, code in zip(functions[1::2], functions[2::2], strict=True) if "_kernel" in name}


def products(architecture: str, *, tensor_cores: bool) -> Iterator[tuple[str, str, str]]:
    """The kernels that multiply matrices, on 16-bit numbers or on float32: kernel, mangled name, machine code."""
    for name, code in kernels(architecture).items():
        for kernel in LOADS:
            if kernel in name and ("float16" in name) == tensor_cores:
                yield kernel, name, code


@on_every_architecture
def test_every_kernel_is_there_for_every_dtype_and_window_size(architecture: str) -> None:
    names = list(kernels(architecture))
    assert {kernel: sum(kernel in name for name in names) for kernel in COUNTS} == COUNTS
    assert len(names) == sum(COUNTS.values())


@on_every_architecture
def test_registers_suffice_without_a_stack(architecture: str) -> None:
    listing = cuobjdump("--dump-resource-usage", "--gpu-architecture", architecture)
    usage = re.findall(r"Function (\S+_kernel\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    assert len(usage) == len(kernels(architecture))
    for name, registers, stack in usage:
        assert int(stack) == 0, f"{name} keeps {stack} bytes on the stack"
        assert int(registers) <= most_registers(name), f"{name} uses {registers} registers"


@on_every_architecture
def test_nothing_spills_to_local_memory(architecture: str) -> None:
    for name, code in kernels(architecture).items():
        assert not re.search(r"\b(LDL|STL)\b", code), name


@on_every_architecture
def test_16_bit_products_use_matrix_instructions_and_float32_ones_do_not(architecture: str) -> None:
    for kernel, name, code in products(architecture, tensor_cores=True):
        assert "HMMA.16816.F32" in code, name
        assert {load for load in (AS_THEY_LIE, TRANSPOSED) if load in code} == set(LOADS[kernel]), name
        assert ("HMMA.16816.F32.BF16" in code) == ("bfloat16" in name), name
    for _, name, code in products(architecture, tensor_cores=False):
        assert "HMMA" not in code, name
        assert "FFMA" in code, name


@on_every_architecture
def test_features_are_copied_in_the_background_16_bytes_at_a_time(architecture: str) -> None:
    for tensor_cores in (True, False):
        for _, name, code in products(architecture, tensor_cores=tensor_cores):
            assert re.search(r"LDGSTS\.E\.BYPASS\S*\.128", code), name


@on_every_architecture
def test_the_rows_of_windows_are_stored_16_bytes_at_a_time(architecture: str) -> None:
    for tensor_cores in (True, False):
        for kernel, name, code in products(architecture, tensor_cores=tensor_cores):
            if kernel not in WINDOW_KERNELS:
                continue
            assert re.search(r"STG\.E\.128", code), name
