"""``bench/cpu.sh``: what it measures, by a command in the place of ``vr-kernels`` that only notes how it was called."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from python_tests.test_docs import PAGES, ROOT
from vr_kernels.cli.measure.benches import BENCHES

RECORDS = {path.name: json.loads(path.read_text()) for path in (ROOT / "bench" / "results").glob("*.json")}


def cpu(folder: Path, *operators: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script in a repository of its own, where its calls are in ``calls``."""
    (folder / "bench").mkdir()
    script = shutil.copy(ROOT / "bench" / "cpu.sh", folder / "bench")
    noting = folder / ".venv" / "bin" / "vr-kernels"
    noting.parent.mkdir(parents=True)
    noting.write_text(f'#!/bin/sh\necho "vr-kernels $*" >>{folder}/calls\n')
    noting.chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if name not in ("OUT", "PROCESSOR")} | environment
    return subprocess.run([script, *operators], env=settings, capture_output=True, text=True, check=False)


def calls(folder: Path) -> dict[str, str]:
    """What would measure, by the name of the record."""
    lines = (folder / "calls").read_text().splitlines()
    return {Path(line.split()[-1]).name: line for line in lines}


def options(command: str) -> list[str]:
    """In an order of their own, without the name of the record; forward alone is the default of most."""
    return sorted(re.sub(r" --no-backward| --json \S+", "", command).split())


def test_it_measures_every_bench_and_repeats_every_committed_record(tmp_path: Path) -> None:
    done = cpu(tmp_path)
    assert done.returncode == 0, done.stderr
    found = calls(tmp_path)
    assert {line.split()[2] for line in found.values()} == set(BENCHES)
    committed = {name: record["command"] for name, record in RECORDS.items() if record["measured"] and "_cpu_" in name}
    assert committed
    for name, command in committed.items():
        assert options(found[name]) == options(command), name


def test_the_page_says_which_of_its_records_are_not_committed(tmp_path: Path) -> None:
    cpu(tmp_path)
    missing: dict[str, set[str]] = {}
    for name in calls(tmp_path).keys() - RECORDS.keys():
        operator, dtype = re.fullmatch(r"(\w+)_cpu_(float32|bfloat16)_\w+\.json", name).groups()  # type: ignore[union-attr]
        missing.setdefault(operator, set()).add(dtype)
    said: dict[str, set[str]] = {}
    listed = PAGES["bench/README.md"].partition("No record was ever committed of\n\n")[2].partition("\n\n")[0]
    for line in listed.splitlines():
        dtypes = set(re.findall(r"in (\w+)$", line)) or {"float32", "bfloat16"}
        said.update(dict.fromkeys(re.findall(r"`(\w+)`", line), dtypes))
    assert said == missing


def test_another_processor_s_records_have_its_name(tmp_path: Path) -> None:
    assert cpu(tmp_path, "token_fusion", PROCESSOR="cpu-amx").returncode == 0
    assert set(calls(tmp_path)) == {f"token_fusion_cpu-amx_{dtype}_forward.json" for dtype in ("float32", "bfloat16")}


def test_an_operator_that_nothing_measures_is_refused(tmp_path: Path) -> None:
    done = cpu(tmp_path, "gather_tokens")
    assert done.returncode == 2
    assert "nothing measures gather_tokens" in done.stderr
