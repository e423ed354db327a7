"""What the README says runs, and what it shows was measured."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "bench" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_every_python_block_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_every_command_exists() -> None:
    from vr_kernels.cli.app import app

    named = set(re.findall(r"^ {4}vr-kernels (\w+)", README, re.MULTILINE))
    assert named
    assert named <= {command.callback.__name__ for command in app.registered_commands if command.callback}


def test_every_make_target_exists() -> None:
    named = set(re.findall(r"^ {4}make (\w+)", README, re.MULTILINE))
    assert named == {"demo", "test", "wheel"}
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in named)


def test_the_figures_are_made_from_the_committed_records() -> None:
    made = tables()
    assert made.in_readme(README) == README
    assert made.page() == made.PAGE.read_text()
