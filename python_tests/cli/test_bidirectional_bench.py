"""``vr-kernels bench bidirectional_attention``: it measures the layer, and counts what the layer must do."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure.bidirectional_attention import BidirectionalAttentionBench
from vr_kernels.cli.measure.bidirectional_attention.cases import SHAPES


def test_a_run_measures_the_layer_against_stock_pytorch(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = ["bench", "bidirectional_attention", "--shape", "tiny", "--quick", "--backward", "--json", str(record)]
    result = CliRunner().invoke(commands, [*command, "--compare", "naive", "--compare", "packed"])
    assert result.exit_code == 0, result.output
    (case,) = json.loads(record.read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "naive", "packed"]
    assert "backend cpu around sdpa" in case["rows"][0]["what"]


def test_operations_and_bytes_are_those_of_the_layer() -> None:
    bench, case = BidirectionalAttentionBench(), SHAPES["v2"]
    n, m, d = 320, 321, 896
    projections = 2 * n * d * d + 2 * m * d * 2 * d + 2 * n * d * d  # q, k and v, output
    assert bench.operations(case) == projections + 2 * n * m * d + 2 * n * m * d
    assert bench.bytes_moved(case) == 4 * (2 * case.length * d + 4 * d * d)
