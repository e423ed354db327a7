"""``vr-kernels bench``: right before fast, and every row shown."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result as Invoked
from torch import Tensor
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure import memory, report, run
from vr_kernels.cli.measure.bench import Contender
from vr_kernels.cli.measure.floor import Ceilings
from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench, contenders
from vr_kernels.cli.measure.local_cross_attention.cases import SHAPES, Inputs, WindowCase
from vr_kernels.cli.measure.timing import Spread

PNG = b"\x89PNG"


def bench(*options: str) -> Invoked:
    return CliRunner().invoke(commands, ["bench", "local_cross_attention", "--shape", "tiny", "--quick", *options])


def test_a_run_leaves_a_table_a_record_and_a_picture(tmp_path: Path) -> None:
    record_file, picture = tmp_path / "record.json", tmp_path / "picture.png"
    options = ("--backward", "--compare", "naive", "--compare", "absorbed", "--compare", "flex")
    result = bench(*options, "--json", str(record_file), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    record = json.loads(record_file.read_text())
    assert record["measured"]
    assert {"date", "command", "environment", "memory"} <= set(record)
    (case,) = record["cases"]
    assert case["case"]["backward"]
    assert [row["name"] for row in case["rows"]] == ["ours", "naive", "absorbed"]
    assert set(case["absent"]) == {"flex"}
    for row in case["rows"]:
        assert 0 < row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert 0 < row["of_floor"] < 1
        assert row["name"] in result.stdout
    assert all(line in result.stdout for line in case["losses"])
    assert picture.read_bytes().startswith(PNG)


def wrong(monkeypatch: pytest.MonkeyPatch, tiles: int | None = None) -> None:
    """Ours, and all that runs on it, is off by a thousandth: always, or for inputs of so many tiles."""
    make = contenders.operator

    def operator(backend: str | None) -> Callable[[Inputs], Tensor]:
        right = make(backend)
        return lambda x: right(x) * (1.001 if tiles in (None, len(x.query)) else 1.0)

    monkeypatch.setattr(contenders, "operator", operator)
    monkeypatch.setattr(run, "paired_seconds", lambda *args: pytest.fail("timed a wrong result"))


def test_wrong_results_end_the_run_before_any_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong(monkeypatch)
    result = bench("--compare", "naive", "--json", str(tmp_path / "record.json"))
    assert result.exit_code == 1
    assert "BEYOND" in result.stdout
    assert "of floor" not in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tiles", [1, 2], ids=["small shape", "full shape"])
def test_one_wrong_shape_is_enough(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, tiles)
    with pytest.raises(run.Incorrect):
        run.run_case(LocalCrossAttentionBench(), replace(SHAPES["tiny"], tiles=2), ["naive"], 3, lambda what: None)


def no_memory(factory: str, arguments: dict[str, object], device: str) -> dict[str, int]:
    raise memory.Unknown("the system keeps it to itself")


def test_a_baseline_that_cannot_run_is_listed_with_the_compilers_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    make = contenders.make_contender

    def without_compiler(name: str, case: WindowCase) -> Contender[Inputs]:
        if name == "compiled":
            raise RuntimeError("backend='inductor' raised") from FileNotFoundError("no C++ compiler found\nhint")
        return make(name, case)

    monkeypatch.setattr(contenders, "make_contender", without_compiler)
    monkeypatch.setattr(run, "peak_memory", no_memory)
    result = bench("--compare", "naive", "--compare", "compiled")
    assert result.exit_code == 0, result.output
    assert "MB: not measured (the system keeps it to itself)" in result.stdout
    assert "compiled: not measured (FileNotFoundError: no C++ compiler found)" in result.stdout


def test_a_lost_row_is_said_in_words() -> None:
    def row(name: str, ratio: float, rival: bool = True) -> run.Row:
        spread = Spread(ratio, ratio, ratio)
        what = "vr_kernels, backend blocked" if name == "ours" else "another way"
        return run.Row(name, what, spread, spread, of_floor=0.1, error=0.0, memory=0, rival=rival)

    rows = [row("ours", 1.0), row("naive", 0.9), row("absorbed", 1.1), row("something_else", 0.5, rival=False)]
    rows.append(row("blocked", 0.9))  # is ours itself
    result = run.Result(SHAPES["tiny"], Ceilings(1.0, 1.0, ""), 1.0, [], rows, {})
    assert report.losses(result) == ["Ours loses to naive here: naive takes 0.90 times our time."]


def test_a_shape_s_record_outlives_the_crash_of_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a kernel reads out of bounds nothing more can be measured, and what was stays."""
    spread = Spread(1.0, 1.0, 1.0)
    row = run.Row("ours", "", spread, spread, of_floor=0.1, error=0.0, memory=0)

    def run_case(bench: object, case: WindowCase, *others: object) -> run.Result:
        if case.name != "tiny":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return run.Result(case, Ceilings(1.0, 1.0, ""), 1.0, [], [row], {})

    monkeypatch.setattr("vr_kernels.cli.bench.run_case", run_case)
    record_file = tmp_path / "record.json"
    assert bench("--shape", "v1", "--json", str(record_file)).exit_code != 0
    record = json.loads(record_file.read_text())
    assert record["measured"]
    assert [case["case"]["name"] for case in record["cases"]] == ["tiny"]


def test_memory_on_a_gpu_is_that_of_calls_which_have_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew, what is compiled would be compiled a second time."""
    case = replace(SHAPES["tiny"], device="cuda")
    timed: dict[str, Contender[str]] = {"compiled": Contender("compiled", "", lambda x: x)}  # type: ignore[arg-type]
    monkeypatch.setattr(run, "cuda_peak", lambda call: (call(), 7)[1])
    monkeypatch.setattr(contenders, "make_contender", lambda *args: pytest.fail("made again"))
    assert run._memory(LocalCrossAttentionBench(), case, "inputs", timed) == {"compiled": 7}


def test_without_a_gpu_cuda_prints_the_plan_and_says_that_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    record_file = tmp_path / "record.json"
    command = ["bench", "local_cross_attention", "--device", "cuda", "--dtype", "bfloat16", "--batch", "8"]
    result = CliRunner().invoke(commands, [*command, "--json", str(record_file)])
    assert result.exit_code == 0, result.output
    assert "arithmetic for an H200, nothing was measured" in result.stdout
    assert "There is no CUDA device here: nothing was measured." in result.stdout
    record = json.loads(record_file.read_text())
    assert not record["measured"]
    assert [case["case"]["name"] for case in record["cases"]] == ["v1", "v2", "s4"]
    assert all("rows" not in case for case in record["cases"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "v9"], "v1, v2, s4, tiny"),
        (["--compare", "nobody"], "naive, compiled"),
        (["--heads", "7"], "7 heads do not divide"),
    ],
)
def test_a_bad_option_is_answered_with_what_it_may_be(options: list[str], message: str) -> None:
    result = bench(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
