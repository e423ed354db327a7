"""What holds for every test: a fixed seed, the same drawn examples each time, GPUs only where there is one."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

# Reproducible, and without a time limit for one example: the machine may be busy.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None, max_examples=15)
hypothesis.settings.load_profile("tests")


def pytest_report_header() -> str:
    waits = os.environ.get("OMP_WAIT_POLICY", "active")
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY={waits}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
