"""What an installed package must do, run by the environment that it is installed in.

python -I python_tests/smoke.py                       # an environment without Triton
TRITON_INTERPRET=1 python -I python_tests/smoke.py    # one with it

`-I` keeps the clone off the import path, so that the package that is tried is the installed one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sysconfig
from pathlib import Path

import torch

import vr_kernels
from vr_kernels.ops import _native

EXPECTS_TRITON = os.environ.get("TRITON_INTERPRET") == "1"


def check_that_the_installed_package_is_the_one_that_is_tried() -> None:
    assert Path(vr_kernels.__file__).is_relative_to(sysconfig.get_path("platlib")), vr_kernels.__file__
    assert importlib.metadata.version("vr-kernels") == vr_kernels.__version__


def check_that_the_native_module_is_of_this_version() -> None:
    assert _native.unavailable() is None, _native.unavailable()
    assert _native.module().build_info()["version"] == vr_kernels.__version__


def check_that_the_kernels_compute_what_the_reference_does() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 6, 6, 24, requires_grad=True) for _ in range(2)]
    query = torch.randn(2, 3, 3, 4, 48, requires_grad=True)

    def result_and_gradients(backend: str) -> tuple[torch.Tensor, ...]:
        result = vr_kernels.local_attention(query, levels, backend=backend)
        return result, *torch.autograd.grad(result.square().sum(), [query, *levels])

    for backend in ("cpu", "triton") if EXPECTS_TRITON else ("cpu",):
        torch.testing.assert_close(result_and_gradients(backend), result_and_gradients("reference"))


def check_that_a_module_trains() -> None:
    resampler = vr_kernels.LocalCrossAttention(32, feature_dims=(24, 24), num_heads=4, feature_norm="level")
    levels = [torch.randn(1, 6, 6, 24) for _ in range(2)]
    resampler(torch.randn(1, 3, 3, 32), levels).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in resampler.parameters() if parameter.grad is not None)


def check_that_torch_and_the_module_share_one_openmp_runtime() -> None:
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    assert len(mapped) == 1, mapped
    assert "torch" in mapped.pop()


def check_that_triton_is_there_only_where_it_is_meant_to_be() -> None:
    assert (importlib.util.find_spec("triton") is not None) == EXPECTS_TRITON


def check_that_the_command_tells_what_it_found() -> None:
    """`vr-kernels info` where its extra is installed; elsewhere the one sentence that names the extra."""
    command = Path(sysconfig.get_path("scripts"), "vr-kernels")
    told = subprocess.run([command, "info", "--json"], capture_output=True, text=True)
    if importlib.util.find_spec("typer") is None:
        assert told.returncode != 0
        assert "vr-kernels[bench]" in told.stderr, told.stderr
        return
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["versions"]["vr_kernels"] == vr_kernels.__version__


for name, check in list(globals().items()):
    if name.startswith("check_"):
        check()
        print(f"  {name.removeprefix('check_').replace('_', ' ')}")
