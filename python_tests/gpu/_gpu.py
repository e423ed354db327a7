"""What the tests on a GPU share: the backends to try there, and calls drawn on the CPU and run on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests._cases import Call
from python_tests._operators import SUBJECTS, WINDOWED, Draw, Subject
from vr_kernels.ops._dispatch import operators

# The kernels written for GPUs, by operator: no call chooses one by itself before it is measured.
KERNELS = {
    operator.name: [b.name for b in operator.backends if b.name.startswith(("triton", "cuda"))]
    for operator in operators()
}


def draws(subject: Subject) -> dict[str, Draw]:
    """Calls that between them take every path of a kernel."""
    return {"grid": {}, "indexed": {"indexed": True}} if subject in WINDOWED else subject.mixes


# (operator, backend, draw), for what holds of all operators and of every kernel.
RUNS = [
    pytest.param(subject, backend, draw, id=f"{subject.name}-{backend}-{name}")
    for subject in SUBJECTS
    for backend in KERNELS[subject.name]
    for name, draw in draws(subject).items()
]
over_runs = pytest.mark.parametrize(("subject", "backend", "draw"), RUNS)


def over_kernels(subject: Subject) -> Any:
    return pytest.mark.parametrize("backend", KERNELS[subject.name])


def refusal(subject: Subject, backend: str) -> str | None:
    """Why the backend cannot run on this GPU, in its own words."""
    operator = next(operator for operator in operators() if operator.name == subject.name)
    request = operator.typical("cuda", torch.float32)
    return next(candidate for candidate in operator.backends if candidate.name == backend).refuses(request)


def need(subject: Subject, backend: str) -> None:
    """Skip where the backend cannot run."""
    reason = refusal(subject, backend)
    if reason is not None:
        pytest.skip(reason)


def moved(call: Call, device: str = "cuda") -> Call:
    """The call with all its tensors on ``device``."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in call.items()}


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for tensors of the CPU, computed on the GPU; gradients come back the same way."""

    def run(**call: Any) -> tuple[Tensor, ...]:
        return tuple(output.cpu() for output in function(**moved(call)))

    return run
