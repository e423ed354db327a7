"""What this machine and this installation are. Each part is asked for by itself: a broken one says so in its place."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vr_kernels import __version__
from vr_kernels.ops import _native
from vr_kernels.ops._dispatch import Operator, operators


def guarded(part: Callable[[], Any]) -> Any:
    """What ``part`` returns, or its error as a sentence."""
    try:
        return part()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def versions() -> dict[str, str]:
    def installed(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {
        "vr_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "transformers": installed("transformers"),
    }


def cpu() -> dict[str, Any]:
    return {
        "model": guarded(cpu_model),
        "cores": guarded(lambda: len(os.sched_getaffinity(0))),
        "threads": guarded(torch.get_num_threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


def cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def cuda() -> dict[str, Any]:
    return {
        "torch built for": torch.version.cuda or "CPU only",
        "driver": guarded(driver),
        "devices": guarded(lambda: [cuda_device(i) for i in range(torch.cuda.device_count())] or "none"),
        "kernel probe": guarded(cuda_probe),
    }


def driver() -> str:
    """The version of NVIDIA's driver."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi on PATH"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]


def cuda_device(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return (
        f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB, "
        f"driver for CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]
    )


def cuda_probe() -> str:
    """What one trivial kernel of _C says of the current device."""
    module = _native.module()
    return str(module.cuda_probe()) if module.build_info()["cuda"] else "vr_kernels._C was built without CUDA"


def native() -> dict[str, Any]:
    module = _native.module()
    return {"build": guarded(module.build_info), "CPU features": guarded(module.cpu_features)}


def backends() -> dict[str, Any]:
    """By operator and device, one reason per backend for a call of a paper's shape."""
    calls = {"cpu": torch.float32, "cuda": torch.bfloat16}
    return {
        operator.name: {
            device: guarded(lambda o=operator, d=device, t=dtype: _reasons(o, d, t))  # type: ignore[misc]
            for device, dtype in calls.items()
        }
        for operator in operators()
    }


def _reasons(operator: Operator[Any], device: str, dtype: torch.dtype) -> dict[str, str]:
    return operator.explain(operator.typical(device, dtype), None).reasons


def report() -> dict[str, Any]:
    """Everything; never raises."""
    parts = {"versions": versions, "CPU": cpu, "CUDA": cuda, "vr_kernels._C": native, "backends": backends}
    return {name: guarded(part) for name, part in parts.items()}
