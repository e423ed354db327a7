"""The operators under test: the public function, its oracle, and what every backend of it is tried on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests import _oracle
from python_tests._cases import Call, attention_call, cross_attention_call
from vr_kernels.ops._dispatch import operators


@dataclass(frozen=True)
class Subject:
    """An operator with all its outputs asked for."""

    name: str
    function: Callable[..., Any]
    oracle: Callable[..., Any]
    call: Callable[..., Call]
    outputs: dict[str, bool]

    def run(self, backend: str | None) -> Callable[..., Any]:
        return functools.partial(self.function, backend=backend, **self.outputs)


LOCAL_ATTENTION = Subject(
    "local_attention",
    vr_kernels.local_attention,
    _oracle.local_attention,
    attention_call,
    {"return_lse": True, "return_attention": True},
)
LOCAL_CROSS_ATTENTION = Subject(
    "local_cross_attention",
    vr_kernels.local_cross_attention,
    _oracle.local_cross_attention,
    cross_attention_call,
    {"return_attention": True},
)
SUBJECTS = [LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION]


def backends_of(subject: Subject) -> list[str]:
    """What can run on this machine's CPU beside the reference."""
    operator = next(operator for operator in operators() if operator.name == subject.name)
    request = operator.typical("cpu", torch.float32)
    return [b.name for b in operator.backends if b.name != "reference" and b.refuses(request) is None]


def over_backends(*others: str | None) -> Any:
    """Parametrises a test over (subject, backend): every backend that can run here, and ``others`` by name."""
    runs = [(subject, backend) for subject in SUBJECTS for backend in [*backends_of(subject), *others]]
    return pytest.mark.parametrize(
        ("subject", "backend"), [pytest.param(*run, id=f"{run[0].name}-{run[1]}") for run in runs]
    )


over_operators = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
