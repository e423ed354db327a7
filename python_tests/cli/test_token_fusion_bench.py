"""``vr-kernels bench token_fusion``: what it compares, and what it counts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure.accuracy import errors
from vr_kernels.cli.measure.token_fusion import TokenFusionBench
from vr_kernels.cli.measure.token_fusion.cases import SHAPES, Layer, make_inputs

BENCH = TokenFusionBench()
TINY = SHAPES["tiny"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["ours", "linear", "conv", "compiled_conv"])
def test_every_contender_computes_the_same(name: str, backward: bool) -> None:
    case = replace(TINY, batch=2, backward=backward)
    x = make_inputs(case)
    found = errors(BENCH.contender(name, case)(x), BENCH.exact(case, x))
    assert len(found) == len(BENCH.quantities(case)) == (5 if backward else 1)
    assert max(found) < 3e-6  # float32, and the largest value is one


def test_the_layers_are_those_of_the_papers_tables() -> None:
    assert SHAPES["mbtf"].layers == [Layer(576, 8192, 4096, 1, True), Layer(576, 4096, 1024, 1, True)]
    assert SHAPES["stf"].layers == [
        Layer(144, 4096, 4096, 2, True), Layer(144, 4096, 16384, 1, True), Layer(144, 16384, 4096, 1, True),
    ]  # fmt: skip
    assert SHAPES["stf_code"].layers == [Layer(144, 4096, 16384, 2, True), Layer(144, 16384, 4096, 1, False)]


def test_operations_and_bytes_are_those_of_the_tensors() -> None:
    x = make_inputs(replace(TINY, backward=True))
    assert x.grad_out is not None
    once = [*x.features, *x.trained, x.grad_out]  # the output has its gradient's size
    assert BENCH.bytes_moved(TINY) == sum(tensor.nbytes for tensor in once)
    assert BENCH.bytes_moved(replace(TINY, backward=True)) == sum(t.nbytes for t in [*once, *x.trained, x.grad_out])
    first, second = 2 * 16 * 256 * 32, 2 * 16 * 32 * 16
    assert BENCH.operations(TINY) == first + second
    assert BENCH.operations(replace(TINY, backward=True)) == 2 * first + 3 * second


def test_a_case_survives_a_record() -> None:
    facts = json.loads(json.dumps(asdict(SHAPES["stf"])))
    assert BENCH.case_of(facts) == SHAPES["stf"]


def test_a_run_leaves_a_table_and_a_record(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    command = ["bench", "token_fusion", "--shape", "tiny", "--quick", "--backward", "--compare", "linear"]
    result = CliRunner().invoke(commands, [*command, "--compare", "conv", "--compare", "triton", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (case,) = json.loads(file.read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "linear", "conv"]
    assert set(case["absent"]) == {"triton"}
