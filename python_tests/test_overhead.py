"""``bench/overhead.py``: the call that it takes the overhead from does the same work as the whole one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.test_docs import bench_script


@pytest.fixture
def overhead() -> Any:
    return bench_script("overhead")


def first_of(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("surrounding", ["no_grad", "inference_mode", "grad"])
def test_the_implementation_returns_what_the_call_returns(overhead: Any, surrounding: str) -> None:
    with overhead.SURROUNDINGS[surrounding]():
        for operator, call in overhead.calls(grad=surrounding == "grad").items():
            whole = call()
            with torch.no_grad():
                alone = first_of(overhead.implementation(operator, call)())
            assert torch.equal(alone, whole), operator
            assert whole.requires_grad is (surrounding == "grad")
            assert not alone.requires_grad


def test_every_operator_is_measured_in_every_surrounding(overhead: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(overhead, "CALLS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # other tests follow in this process
    monkeypatch.setattr("sys.argv", ["overhead.py", "--rounds", "3", "--json", str(tmp_path / "record.json")])
    overhead.main()
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    wanted = [(operator, around) for operator in overhead.calls(grad=False) for around in overhead.SURROUNDINGS]
    assert [(row["operator"], row["surrounding"]) for row in rows] == wanted
    for row in rows:
        assert row["whole"] > row["least"] > -row["whole"]
