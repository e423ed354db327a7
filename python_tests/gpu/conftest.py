"""These tests need a GPU: elsewhere each is skipped, and says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch

# What cuBLAS needs to be deterministic; read when the process first uses it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _usable_gpu() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        end_if_the_gpu_is_lost()


def end_if_the_gpu_is_lost() -> None:
    """An access out of bounds leaves a process that can use the GPU no more: every later test would fail of it.

    Under pytest-xdist the worker ends: the test that it ran is named, and another worker takes the rest.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            pytest.exit(f"the GPU is lost to this process: {error}", returncode=3)
        print(error, file=sys.stderr, flush=True)
        os._exit(3)
