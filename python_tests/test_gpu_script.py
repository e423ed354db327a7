"""``bench/gpu.sh``, which has one half hour to be right in: what can be seen of it without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from python_tests.test_docs import ROOT
from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.llava_vr.cases import SHAPES

SCRIPT = ROOT / "bench" / "gpu.sh"


def gpu(tmp_path: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folders = {"WORK": tmp_path / "work", "OUT": tmp_path / "out", "WHEELS": tmp_path / "wheels"}
    settings = {**os.environ, **{name: str(folder) for name, folder in folders.items()}, **environment}
    return subprocess.run([SCRIPT, *steps], env=settings, capture_output=True, text=True, check=False)


def test_every_step_of_the_calls_measures_something_that_there_is() -> None:
    calls = dict(re.findall(r'^  \[(\d)\]="(.*?)"$', SCRIPT.read_text(), re.MULTILINE | re.DOTALL))
    assert list(calls) == ["1", "2", "3"]
    steps = [step for words in calls.values() for step in words.split()]
    assert {found[1] for step in steps if (found := re.fullmatch(r"bench-(\w+)-\d+", step))} <= set(BENCHES)
    for step in steps:
        kind, _, shape = step.partition("-")
        assert kind not in ("llava_vr", "training") or shape in SHAPES, step
    measured = {step.split("-")[1] for step in steps if step.startswith("bench-")} | {
        "local_cross_attention",
        "llava_vr",
    }
    assert measured == set(BENCHES)


def test_a_step_that_fails_is_named_and_its_log_comes_back_with_the_next_one_s(tmp_path: Path) -> None:
    done = gpu(tmp_path, "nonsense", "bench-token_fusion-8", PYTHON="/bin/false")
    assert done.returncode == 1
    assert "== nonsense: exit status 2" in done.stdout
    assert "== bench-token_fusion-8: exit status 1" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu.tar.gz"]
    with tarfile.open(tmp_path / "out" / "gpu.tar.gz") as archive:
        assert {"./nonsense.log", "./bench-token_fusion-8.log"} <= set(archive.getnames())


def test_the_tests_run_by_settings_that_an_older_pytest_takes(tmp_path: Path) -> None:
    """pytest 8 reads minversion from pyproject.toml whatever ``-o`` says."""
    words, settings = tmp_path / "python", tmp_path / "work/pytest.ini"
    words.write_text('#!/bin/sh\necho "$@"\n')
    words.chmod(0o755)
    done = gpu(tmp_path, "test-cuda_fused", PYTHON=str(words))
    assert f"-m pytest -c {settings} --rootdir . python_tests/gpu -k cuda_fused" in done.stdout
    assert "minversion" not in settings.read_text()


def test_a_step_that_hangs_ends_at_its_limit_and_the_call_at_its_own(tmp_path: Path) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\ntrap '' INT\necho begun\nexec sleep 600\n")
    hanging.chmod(0o755)
    done = gpu(tmp_path, "bench-token_fusion-8", "bench-saliency-8", PYTHON=str(hanging), LIMIT="1", CALL_LIMIT="25")
    assert "== bench-token_fusion-8: exit status 137 after" in done.stdout
    assert re.search(r"== bench-saliency-8: not begun, \d+ seconds are left", done.stdout)
    assert "begun" in (tmp_path / "work/results/bench-token_fusion-8.log").read_text()


def test_the_counters_step_runs_one_call_of_each_kernel_below_ncu(tmp_path: Path) -> None:
    ncu = tmp_path / "bin" / "ncu"
    ncu.parent.mkdir()
    ncu.write_text('#!/bin/bash\nwhile [[ $1 != *python* ]]; do echo "$1"; shift; done\nexec "$@"\n')
    ncu.chmod(0o755)
    path = f"{ncu.parent}:{os.environ['PATH']}"
    gpu(tmp_path, "counters-1", PYTHON=sys.executable, DEVICE="cpu", QUICK="1", PATH=path)
    results = tmp_path / "work" / "results"
    log = (results / "counters-1.log").read_text()
    assert f"--log-file\n{results / 'gpu-counters-1.csv'}" in log
    # There is no GPU here, so each says what it would have needed: that all four are asked is what can be seen.
    for backend in ("triton", "triton_fused", "cuda", "cuda_fused"):
        assert re.search(rf"^tiny {backend}: ValueError: .*backend='{backend}' cannot run this call", log, re.MULTILINE)
