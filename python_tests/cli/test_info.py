"""``vr-kernels info`` tells what it can, whatever is broken."""

import json

import pytest
from typer.testing import CliRunner

from vr_kernels.cli import environment
from vr_kernels.cli.commands import commands
from vr_kernels.ops import _native
from vr_kernels.ops._dispatch import operators

PARTS = ("versions", "cpu", "cuda", "native", "backends")


def info(*options: str) -> str:
    result = CliRunner().invoke(commands, ["info", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*args: object, **kwargs: object) -> None:
    raise OSError("broken on purpose")


def test_every_backend_of_every_operator_has_its_reason() -> None:
    backends = json.loads(info("--json"))["backends"]
    assert set(backends) == {operator.name for operator in operators()}
    for operator in operators():
        for device in ("cpu", "cuda"):
            reasons = backends[operator.name][device]
            assert set(reasons) == {backend.name for backend in operator.backends}
            assert all(reasons.values())


def test_the_reader_sees_what_the_json_holds() -> None:
    shown = info()
    for name, version in json.loads(info("--json"))["versions"].items():
        assert f"{name}: {version}" in shown


def test_a_package_that_is_not_installed_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise environment.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(environment.importlib.metadata, "version", absent)
    assert "transformers: not installed" in info()


def test_native_code_that_cannot_be_loaded_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_import", lambda: (None, "no such module, on purpose"))
    report = json.loads(info("--json"))
    assert "no such module, on purpose" in report["vr_kernels._C"]
    assert "no such module, on purpose" in report["backends"]["local_cross_attention"]["cpu"]["cpu"]
    assert report["versions"]["torch"]


@pytest.mark.parametrize("name", ["cpu_features", "build_info"])
def test_native_code_that_fails_when_asked_leaves_the_rest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native.module(), name, fail)
    parts = json.loads(info("--json"))["vr_kernels._C"]
    assert [part for part in parts.values() if part == "OSError: broken on purpose"]
    assert [part for part in parts.values() if isinstance(part, dict)]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_fails_says_so_in_its_place(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, part, fail)
    report = json.loads(info("--json"))
    assert len(report) == len(PARTS)
    assert [value for value in report.values() if value == "OSError: broken on purpose"]


@pytest.mark.parametrize("function", ["torch.cuda.device_count", "torch.get_num_threads", "os.sched_getaffinity"])
def test_a_fact_that_fails_leaves_its_neighbours(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, fail)
    report = json.loads(info("--json"))
    assert "broken on purpose" in json.dumps(report)
    assert all(isinstance(part, dict) for part in report.values())
