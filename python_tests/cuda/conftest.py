"""The host twin of a GPU as fixtures; _twin.py says what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from filelock import FileLock

from python_tests.cuda import _twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    workers = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp().parent if workers else tmp_path_factory.mktemp("twin")
    output = folder / "_twin.so"
    with FileLock(folder / "_twin.lock"):  # the first worker builds it for all
        if not output.exists():
            _twin.build(output)
    return _twin.load(output)


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def _twin_backend(twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _twin.add_backends(twin, monkeypatch)
