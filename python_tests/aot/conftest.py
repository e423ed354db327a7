"""These tests compile Triton's kernels for GPUs that need not be here: a process of its own, no interpreter in it."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError("python_tests/aot needs a pytest process of its own, without TRITON_INTERPRET")
