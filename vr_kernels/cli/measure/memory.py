"""Peak memory of one call, beyond what was there before it; output and gradients count.

On the CPU: the rise of the resident set's high-water mark, which sees buffers of torch, of its libraries and of our
native code alike. It is read in a process of its own, whose allocator gives every freed buffer back to the system.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

METHODS = {
    "cpu": "peak rise of the resident set during one call, in a process of its own",
    "cuda": "peak of torch.cuda.max_memory_allocated over what was allocated before the call",
}


class Unknown(Exception):
    """The system does not tell, or the other process failed."""


class Call(NamedTuple):
    """``warm_up`` loads the code that ``run`` needs, and leaves no buffer of ``run``'s size behind."""

    warm_up: Callable[[], object]
    run: Callable[[], object]


def peak_memory(factory: str, arguments: dict[str, Any], device: str) -> dict[str, int]:
    """Bytes by name. ``factory``, a "module:function", takes the arguments and returns a Call by name.

    Raises:
        Unknown: with the reason.
    """
    if device == "cuda":
        return {name: _warm_cuda_peak(call) for name, call in _calls(factory, arguments).items()}
    # A fixed threshold: glibc would raise it with the sizes it sees, and keep freed buffers in its heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __name__, factory, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unknown(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _calls(factory: str, arguments: dict[str, Any]) -> dict[str, Call]:
    module, function = factory.split(":")
    calls: dict[str, Call] = getattr(importlib.import_module(module), function)(**arguments)
    return calls


def cuda_peak(run: Callable[[], object]) -> int:
    """Bytes that a call takes on the GPU, which has run before: torch's allocator counts them, whatever it has kept."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _warm_cuda_peak(call: Call) -> int:
    call.warm_up()
    return cuda_peak(call.run)


def _cpu_peak(call: Call) -> int:
    call.warm_up()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    call.run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    print(json.dumps({name: _cpu_peak(call) for name, call in _calls(sys.argv[1], json.loads(sys.argv[2])).items()}))
