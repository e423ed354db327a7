"""These tests run Triton's kernels on the CPU, in its interpreter: a process of its own, for triton loads for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("python_tests/interpreter needs a pytest process of its own: triton is already imported")
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np

from python_tests.interpreter import _bfloat16, _nested_calls, _types

_bfloat16.install()
_nested_calls.install()
_types.install()


@pytest.fixture(autouse=True)
def _floating_point_as_on_a_gpu() -> Iterator[None]:
    """log(0) is -inf and inf - inf is NaN, without numpy's warnings."""
    with np.errstate(all="ignore"):
        yield
