"""The source distribution has every file of the repository, and refuses in a sentence what it cannot build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OF_THE_REPOSITORY_ALONE = {".ci/run", ".gitignore"}


def tracked() -> set[str]:
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return set(listed.splitlines())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what git tracks: building leaves files beside what is built."""
    for name in tracked():
        if (REPOSITORY / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / "source" / name)
    return tmp_path / "source"


def setup(source: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "setup.py", *command], cwd=source, env=inherited | variables, capture_output=True, text=True
    )


def test_the_source_distribution_is_complete(source: Path) -> None:
    assert setup(source, "sdist").returncode == 0
    (archive,) = source.glob("dist/*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert tracked() - names == OF_THE_REPOSITORY_ALONE


def test_cuda_is_refused_in_a_sentence_where_there_is_no_compiler(source: Path) -> None:
    refused = setup(source, "build_ext", VR_KERNELS_CUDA="1", CUDACXX="/nowhere/nvcc")
    assert refused.returncode != 0
    assert "/nowhere/nvcc does not work" in re.sub(r"\s+", " ", refused.stderr)
    assert refused.stderr.rstrip().endswith("what CMake said above tells why")
    assert "Traceback" not in refused.stderr


def test_the_hooks_before_a_commit_are_the_linters() -> None:
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    lint = (REPOSITORY / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    run_by_lint = set(re.findall(r"\$\(BIN\)/(\S+(?: check| format)?)", lint))
    assert set(re.findall(r"entry: \.venv/bin/(\S+(?: check| format)?)", hooks)) == run_by_lint
