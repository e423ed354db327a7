"""VR_KERNELS_LOG, VR_KERNELS_BACKEND and VR_KERNELS_CHECK: what they show, choose and stop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from vr_kernels.ops._observation import ReferenceMismatch, _fault, _observe
from vr_kernels.ops._settings import Settings

REPOSITORY = Path(__file__).parents[2]

CALL = """import torch, vr_kernels
torch.manual_seed(0)
query, key = torch.randn(1, 2, 2, 1, 8), torch.randn(1, 4, 4, 1, 8)
out = vr_kernels.local_attention(query, key)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_nothing_is_observed_without_the_variables() -> None:
    assert vr_kernels.local_attention.__module__ == "vr_kernels.ops.local_attention"
    assert not hasattr(vr_kernels.local_attention, "__wrapped__")


@pytest.mark.parametrize("value", ["", "0"])
def test_empty_and_zero_are_off(value: str) -> None:
    settings = Settings.of(dict.fromkeys(("VR_KERNELS_LOG", "VR_KERNELS_CHECK", "VR_KERNELS_BACKEND"), value[:0]))
    assert settings == Settings()
    assert not Settings.of({"VR_KERNELS_LOG": value, "VR_KERNELS_CHECK": value}).observes


def test_the_log_has_shapes_strides_dtypes_backend_and_reasons() -> None:
    done = run(CALL, VR_KERNELS_LOG="1")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "local_attention(query=float32 (1, 2, 2, 1, 8) strides (32, 16, 8, 8, 1) on cpu, key=float32" in line
    assert "-> cpu [cpu: chosen; triton: cannot run: " in line


def test_the_log_can_be_a_file_and_modules_are_in_it(tmp_path: Path) -> None:
    program = """import torch, vr_kernels
module = vr_kernels.LocalCrossAttention(32, (16, 16), 2)
module(torch.randn(1, 2, 2, 32), [torch.randn(1, 4, 4, 16)] * 2)"""
    done = run(program, VR_KERNELS_LOG=str(tmp_path / "calls.log"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "local_cross_attention(" in (tmp_path / "calls.log").read_text()


def test_a_program_that_configures_logging_gets_each_line_once() -> None:
    done = run("import logging; logging.basicConfig()\n" + CALL, VR_KERNELS_LOG="1")
    (line,) = done.stderr.splitlines()
    assert "local_attention(query=" in line


@pytest.mark.parametrize("value", ["reference", "local_attention=reference", "gather_tokens=cpu,reference"])
def test_the_environment_names_the_backend(value: str) -> None:
    program = CALL + "print(vr_kernels.explain(vr_kernels.local_attention, query, key))"
    done = run(program, VR_KERNELS_BACKEND=value)
    assert done.stdout.startswith("local_attention: reference\n"), done.stderr
    assert "can run; another was asked for" in done.stdout


def test_an_argument_beats_the_environment() -> None:
    program = CALL + 'print(vr_kernels.explain(vr_kernels.local_attention, query, key, backend="cpu").chosen)'
    assert run(program, VR_KERNELS_BACKEND="reference").stdout == "cpu\n"


def test_a_backend_that_cannot_run_raises_and_says_why() -> None:
    done = run(CALL, VR_KERNELS_BACKEND="triton")
    assert done.returncode == 1
    assert "backend='triton' cannot run this call: the Triton kernels take CUDA tensors" in done.stderr


def test_a_backend_that_an_operator_does_not_have_is_named_with_those_it_has() -> None:
    done = run(CALL, VR_KERNELS_BACKEND="local_attention=cudnn")
    assert "backend is 'cudnn'; it must be None or one of cpu, triton, cuda, reference" in done.stderr


@pytest.mark.parametrize("value", ["refrence", "local_atention=cpu"])
def test_a_name_that_nothing_has_is_refused(value: str) -> None:
    done = run(CALL, VR_KERNELS_BACKEND=value)
    assert re.search(r"ValueError: VR_KERNELS_BACKEND (is|names) '(refrence|local_atention)'; the ", done.stderr)


def test_right_calls_pass_the_check_and_leave_no_file(tmp_path: Path) -> None:
    program = CALL + "out = vr_kernels.local_attention(query.bfloat16(), key.bfloat16(), return_lse=True)"
    done = run(program, VR_KERNELS_CHECK=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def wrong_by(difference: float) -> Any:
    """local_attention, but the CPU kernel errs."""

    def local_attention(query: Tensor, key: Tensor, *, backend: str | None = None) -> Tensor:
        out = vr_kernels.local_attention(query, key, backend=backend)
        return out if backend == "reference" else out + difference

    return local_attention


def observed(function: Any, folder: Path) -> Any:
    def explain(**call: Any) -> Any:
        return vr_kernels.explain(vr_kernels.local_attention, **call)

    return _observe(function, explain, Settings(check=str(folder)))


@pytest.mark.parametrize("difference", [1e-5, float("nan")])
def test_a_wrong_result_stops_with_its_inputs_and_a_script_that_shows_it(tmp_path: Path, difference: float) -> None:
    query, key = torch.randn(1, 2, 2, 1, 8), torch.randn(1, 4, 4, 1, 8)
    with pytest.raises(ReferenceMismatch, match=r"output 0 of backend .cpu. is (nan|.*) allowed") as caught:
        observed(wrong_by(difference), tmp_path)(query, key)
    script = tmp_path / "vr_kernels_check_local_attention_0.py"
    assert str(script) in str(caught.value)
    saved = torch.load(script.with_suffix(".pt"))
    assert torch.equal(saved["query"], query)
    assert torch.equal(saved["key"], key)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("output 0: largest difference ")


def test_a_second_fault_does_not_write_over_the_first(tmp_path: Path) -> None:
    wrong = observed(wrong_by(1.0), tmp_path)
    for _ in range(2):
        with pytest.raises(ReferenceMismatch):
            wrong(torch.randn(1, 2, 2, 1, 8), torch.randn(1, 4, 4, 1, 8))
    assert len(list(tmp_path.glob("*.pt"))) == 2


@pytest.mark.parametrize("variable", ["VR_KERNELS_LOG", "VR_KERNELS_CHECK"])
def test_a_program_under_autocast_is_observed_like_any_other(variable: str, tmp_path: Path) -> None:
    program = """import torch, vr_kernels
module = vr_kernels.LocalCrossAttention(32, (16, 16), 2)
with torch.autocast("cpu", torch.bfloat16):  # the query is bfloat16 by then, the features are not
    module(torch.randn(1, 2, 2, 32), [torch.randn(1, 4, 4, 16)] * 2)"""
    done = run(program, **{variable: str(tmp_path / "found")})
    assert (done.returncode, done.stderr) == (0, "")


def test_float64_and_the_luck_of_a_single_number_are_no_faults(tmp_path: Path) -> None:
    program = """import torch, vr_kernels
for seed in range(40):
    torch.manual_seed(seed)
    query, key = torch.randn(1, 1, 2, 1), torch.randn(1, 2, 2, 1)
    vr_kernels.attention_importance(query, key)
    vr_kernels.bidirectional_attention(key.double(), key.double(), key.double())"""
    done = run(program, VR_KERNELS_CHECK=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_float64_computed_in_float32_is_a_fault() -> None:
    exact = torch.randn(1000, dtype=torch.float64)
    assert _fault(exact.float().double(), exact, exact) is not None


def test_rounding_is_no_fault_and_infinities_must_agree() -> None:
    exact = torch.randn(1000, dtype=torch.float64)
    assert _fault(exact.bfloat16(), exact.bfloat16(), exact) is None
    infinite = torch.full((3,), -torch.inf, dtype=torch.float64)
    assert _fault(infinite.float(), infinite.float(), infinite) is None
    assert _fault(torch.zeros(3), infinite.float(), infinite) is not None
    assert _fault(torch.zeros(2), torch.zeros(3), torch.zeros(3, dtype=torch.float64)) is not None


def test_traced_calls_are_not_compared(tmp_path: Path) -> None:
    program = """import torch, vr_kernels
compiled = torch.compile(vr_kernels.local_attention, fullgraph=True, backend="aot_eager")
print(compiled(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 2, 2, 1, 2)).flatten().tolist())"""
    done = run(program, VR_KERNELS_CHECK=str(tmp_path))
    assert done.stdout == "[1.0, 1.0]\n", done.stderr


def test_calls_without_memory_are_not_compared(tmp_path: Path) -> None:
    query, key = torch.empty(1, 2, 2, 1, 8, device="meta"), torch.empty(1, 4, 4, 1, 8, device="meta")
    assert observed(vr_kernels.local_attention, tmp_path)(query, key).is_meta
    assert not list(tmp_path.iterdir())


def test_every_variable_stands_in_the_table() -> None:
    folders = ("vr_kernels", "python_tests", "bench", "examples")
    sources = [*(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))]
    sources += [REPOSITORY / name for name in ("setup.py", "CMakeLists.txt", "Makefile")]
    used = {name for path in sources for name in re.findall(r"VR_KERNELS_[A-Z_]+", path.read_text())}
    page = (REPOSITORY / "docs" / "debugging.md").read_text()
    native = [path for path in (REPOSITORY / "csrc").rglob("*") if path.is_file()]
    used |= {name for path in native for name in re.findall(r'getenv\("(VR_KERNELS_[A-Z_]+)"', path.read_text())}
    # Handed from setup.py to CMake, and inside it.
    internal = {"VR_KERNELS_VERSION", "VR_KERNELS_SANITIZER", "VR_KERNELS_STD_THREADS"}
    assert used - internal - {"VR_KERNELS_"} <= set(re.findall(r"`(VR_KERNELS_[A-Z_]+)`", page))
