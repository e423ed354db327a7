"""Every instruction set that the processor has computes the same function, within the error rule."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from python_tests._cases import DTYPES
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import DEFORMABLE_ATTENTION, LOCAL_ATTENTION, WINDOWED, Subject, over, over_windowed
from vr_kernels import _C

AVAILABLE = _C.cpu_features()["available"]
isas = pytest.mark.parametrize("isa", AVAILABLE)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = _C.isa()
    yield
    _C.set_isa(before)


def every_argument(subject: Subject) -> dict[str, Any]:
    if subject is DEFORMABLE_ATTENTION:
        return {"width": 37}
    if subject is LOCAL_ATTENTION:
        return {"kv_heads": 1, "heads": 5, "width": (37, 32), "bias": "per window", "saliency": True}
    return {"widths": (37, 32), "norm": "level", "biases": True, "bias": "per window", "saliency": "value"}


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("indexed", [False, True])
@over_windowed
def test_each_obeys_the_error_rule(subject: Subject, indexed: bool, dtype: torch.dtype, isa: str) -> None:
    _C.set_isa(isa)
    assert _C.isa() == isa
    subject.assert_obeys_the_error_rule(
        "cpu",
        lambda seed: subject.call(seed, dtype=dtype, indexed=indexed, **every_argument(subject)),
        skip=["d key_bias"],  # its exact gradient is zero: torch's error is no yardstick
    )


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 37, 100])
def test_each_samples_within_the_error_rule(width: int, dtype: torch.dtype, isa: str) -> None:
    _C.set_isa(isa)
    DEFORMABLE_ATTENTION.assert_obeys_the_error_rule(
        "cpu",
        lambda seed: DEFORMABLE_ATTENTION.call(seed, dtype=dtype, width=width),
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("isa", [isa for isa in AVAILABLE if isa != "baseline"])
@over([*WINDOWED, DEFORMABLE_ATTENTION])
def test_each_differs_from_the_baseline_in_rounding(subject: Subject, isa: str) -> None:
    # If no bit differed, set_isa would choose nothing. Only the AMX tiles take bfloat16.
    dtype = torch.bfloat16 if isa == "amx" else torch.float32
    call = subject.call(dtype=dtype, **every_argument(subject))
    function = subject.run("cpu")
    cotangents = random_cotangents(function, call)
    _C.set_isa(isa)
    ours = evaluate(function, call, cotangents)
    _C.set_isa("baseline")
    baseline = evaluate(function, call, cotangents)
    assert any(not torch.equal(ours[name], baseline[name]) for name in ours)


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'; it may be baseline, avx2, avx512, amx"):
        _C.set_isa("sse9")
    assert _C.isa() == before


def in_a_process_with(value: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VR_KERNELS_CPU_ISA": value}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_chooses_the_instruction_set() -> None:
    result = in_a_process_with("baseline", "import torch; from vr_kernels import _C; print(_C.isa())")
    assert result.stdout.strip() == "baseline"


def test_an_unknown_instruction_set_in_the_environment_is_refused_and_no_other_backend_steps_in() -> None:
    program = (
        "import torch, vr_kernels; vr_kernels.local_attention(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 2, 2, 1, 2))"
    )
    result = in_a_process_with("sse9", program)
    assert result.stderr.splitlines()[-1] == (
        "ValueError: VR_KERNELS_CPU_ISA: unknown instruction set 'sse9'; it may be baseline, avx2, avx512, amx"
    )
