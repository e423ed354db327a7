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

# Two blocks of 128 threads and as much shared memory as two may take; three where windows are small.
MOST_REGISTERS = 168
WINDOW_KERNELS = ("forward_kernel", "backward_kernel")
KERNELS = (*WINDOW_KERNELS, "disjoint_kernel", "overlapping_kernel")


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


def window_kernels(architecture: str, *, tensor_cores: bool) -> Iterator[tuple[str, str]]:
    """Those of the forward and the backward pass, on 16-bit numbers or on float32."""
    for name, code in kernels(architecture).items():
        if any(kernel in name for kernel in WINDOW_KERNELS) and ("float16" in name) == tensor_cores:
            yield name, code


@on_every_architecture
def test_every_kernel_is_there_for_every_dtype_and_window_size(architecture: str) -> None:
    names = list(kernels(architecture))
    counts = {kernel: sum(kernel in name for name in names) for kernel in KERNELS}
    # Three dtypes; the window kernels with room for 16 and for 64 slots.
    assert counts == {"forward_kernel": 6, "backward_kernel": 6, "disjoint_kernel": 3, "overlapping_kernel": 3}


@on_every_architecture
def test_registers_suffice_without_a_stack(architecture: str) -> None:
    listing = cuobjdump("--dump-resource-usage", "--gpu-architecture", architecture)
    usage = re.findall(r"Function (\S+_kernel\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    assert len(usage) == len(kernels(architecture))
    for name, registers, stack in usage:
        assert int(stack) == 0, f"{name} keeps {stack} bytes on the stack"
        assert int(registers) <= MOST_REGISTERS, f"{name} uses {registers} registers"


@on_every_architecture
def test_nothing_spills_to_local_memory(architecture: str) -> None:
    for name, code in kernels(architecture).items():
        assert not re.search(r"\b(LDL|STL)\b", code), name


@on_every_architecture
def test_16_bit_products_use_matrix_instructions_and_float32_ones_do_not(architecture: str) -> None:
    for name, code in window_kernels(architecture, tensor_cores=True):
        dtype = "BF16" if "bfloat16" in name else "F32"
        assert re.search(rf"HMMA\.16816\.F32(\.{dtype})?", code), name
        assert "LDSM.16.M88.4" in code, name
        assert "LDSM.16.MT88.4" in code, name
        assert ("HMMA.16816.F32.BF16" in code) == ("bfloat16" in name), name
    for name, code in window_kernels(architecture, tensor_cores=False):
        assert "HMMA" not in code, name
        assert "FFMA" in code, name


@on_every_architecture
def test_features_are_copied_in_the_background_16_bytes_at_a_time(architecture: str) -> None:
    for tensor_cores in (True, False):
        for name, code in window_kernels(architecture, tensor_cores=tensor_cores):
            assert re.search(r"LDGSTS\.E\.BYPASS\S*\.128", code), name


@on_every_architecture
def test_rows_are_stored_16_bytes_at_a_time(architecture: str) -> None:
    for tensor_cores in (True, False):
        for name, code in window_kernels(architecture, tensor_cores=tensor_cores):
            assert re.search(r"STG\.E\.128", code), name
