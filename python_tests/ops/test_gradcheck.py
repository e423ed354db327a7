"""The definitions in float64: analytic gradients against finite differences, and what only they can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests._cases import Call, attention_call, cross_attention_call, floating_tensors
from python_tests._operators import LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION, Subject

TINY = {"dtype": torch.float64, "batch": 1, "windows": (1, 2), "window": (1, 2), "heads": 2}
TINY_ATTENTION = TINY | {"width": 3, "kv_heads": 1}
TINY_CROSS_ATTENTION = TINY | {"head_dim": 2, "widths": (2, 3), "biases": True}

ATTENTION = {
    "grid": {"value_width": 2, "bias": "shared", "saliency": True},
    "indexed": {"indexed": True, "bias": "per window", "saliency": True},
    "levels": {"indexed": True, "width": (1, 2), "saliency": True},
}
CROSS_ATTENTION = {
    "grid": {"bias": "shared", "saliency": "value"},
    "norm over all": {"norm": "all", "saliency": "feature"},
    "norm of each level": {"norm": "level", "norm_shift": False},
    "indexed": {"indexed": True, "bias": "per window", "norm": "level", "saliency": "value"},
}


def as_function_of_tensors(function: Callable[..., Any], call: Call) -> tuple[Callable[..., Any], list[Tensor]]:
    """``function(**call)`` as a function of the call's floating tensors, and those tensors, requiring gradients."""
    tensors = floating_tensors(call)

    def run(*values: Tensor) -> Any:
        given = dict(zip(tensors, values, strict=True))
        lists = {name: value for name, value in call.items() if isinstance(value, list)}
        arguments = call | {name: given[name] for name in given if name in call}
        arguments |= {name: [given[f"{name}[{i}]"] for i in range(len(value))] for name, value in lists.items()}
        return function(**arguments)

    return run, [tensor.clone().requires_grad_() for tensor in tensors.values()]


def assert_gradients_are_right(subject: Subject, backend: str, call: Call) -> None:
    run, tensors = as_function_of_tensors(subject.run(backend), call)
    # Finite differences cannot take an empty window's log-sum-exp, −inf.
    assert torch.autograd.gradcheck(lambda *values: [out.clamp(min=-1e3) for out in run(*values)], tensors)


@pytest.mark.parametrize("spec", ATTENTION.values(), ids=ATTENTION.keys())
def test_local_attention_s_reference(spec: dict[str, Any]) -> None:
    assert_gradients_are_right(LOCAL_ATTENTION, "reference", attention_call(**(TINY_ATTENTION | spec)))


@pytest.mark.parametrize("backend", ["reference", "absorbed", "unabsorbed"])
@pytest.mark.parametrize("spec", CROSS_ATTENTION.values(), ids=CROSS_ATTENTION.keys())
def test_local_cross_attention_s_definitions(spec: dict[str, Any], backend: str) -> None:
    call = cross_attention_call(**(TINY_CROSS_ATTENTION | spec))
    assert_gradients_are_right(LOCAL_CROSS_ATTENTION, backend, call)


@pytest.mark.parametrize("indexed", [False, True])
def test_references_are_differentiable_twice_and_in_forward_mode(indexed: bool) -> None:
    calls = [
        (LOCAL_ATTENTION, attention_call(**TINY_ATTENTION, indexed=indexed, saliency=True)),
        (LOCAL_CROSS_ATTENTION, cross_attention_call(**TINY_CROSS_ATTENTION, indexed=indexed, norm="all")),
    ]
    for subject, call in calls:
        run, tensors = as_function_of_tensors(subject.run("reference"), call)
        first = [tensor.detach().requires_grad_(i == 0) for i, tensor in enumerate(tensors)]  # the query alone: fast
        assert torch.autograd.gradcheck(lambda *values, run=run: run(*values)[0], first, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda *values, run=run: run(*values)[0], first)
