"""The entry point, and what every command asks first."""

import subprocess
import sys
from pathlib import Path

import pytest

from vr_kernels.cli import checks, main


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_package_is_one_sentence_that_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == f'vr-kernels: {missing} is not installed; this needs pip install "vr-kernels[bench]"'


def test_a_sentence_as_exit_code_leaves_with_1() -> None:
    script = "import sys; sys.modules['typer'] = None; from vr_kernels.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "vr-kernels[bench]" in done.stderr


def test_importing_the_package_loads_nothing_of_the_command() -> None:
    script = "import sys, vr_kernels; print([m for m in ('typer', 'rich', 'vr_kernels.cli') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_without_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    checks.require_folder(None, tmp_path / "record.json")
    with pytest.raises(SystemExit, match="no folder"):
        checks.require_folder(tmp_path / "absent" / "record.json")
