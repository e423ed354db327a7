"""What a newcomer types from the pages runs, as it stands there: the command, and a program under each variable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.test_docs import PAGES, typed_lines

pytest.importorskip("typer", reason="the command needs the extra bench")

FIRST_PAGES = ("docs/install.md", "docs/tutorial.md", "docs/debugging.md")

TYPED = sorted({
    re.sub(r" +#.*", "", line)
    for page, line in typed_lines()
    if page in FIRST_PAGES and re.match(r"(VR_KERNELS_\w+=\S+ )?(vr-kernels|python) ", line)
})  # fmt: skip

# The reader's own train.py.
TRAIN = """import torch
from vr_kernels import LocalCrossAttention

attention = LocalCrossAttention(96, feature_dims=(48, 48), num_heads=4, feature_norm="level")
out = attention(torch.randn(2, 4, 4, 96), [torch.randn(2, 12, 12, 48) for _ in range(2)])
out.sum().backward()
"""


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(TRAIN)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_pages_have_commands_for_each_of_them() -> None:
    started = " ".join(TYPED)
    for name in ("vr-kernels info", "vr-kernels bench", *(f"VR_KERNELS_{it}=" for it in ("LOG", "BACKEND", "CHECK"))):
        assert name in started


@pytest.mark.parametrize("line", TYPED)
def test_a_command_of_the_first_pages_runs(line: str, tmp_path: Path) -> None:
    if line.startswith("vr-kernels bench") and "--quick" not in line:
        line += " --shape tiny --quick --compare naive"  # the papers' shapes take minutes
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    for file in re.findall(r"(?:=|--json )(\w+\.(?:log|json))", line):
        assert (tmp_path / file).stat().st_size > 0
    assert ("local_cross_attention(" in done.stderr) == line.startswith("VR_KERNELS_LOG=1 ")


def test_no_block_of_a_page_escapes_the_tests() -> None:
    """Python runs, console input is looked up, and code that a page includes is a file of the package."""
    known = re.compile(r'```(python|console| \{\.python title="[\w/]+\.py"\}|)')
    for page, text in PAGES.items():
        fences = [line for line in text.splitlines() if re.match(r"\s*(```|~~~)", line)]
        assert [line for line in fences if not known.fullmatch(line)] == [], page
        assert [line for line in fences[::2] if line == "```"] == [], page
        assert set(fences[1::2]) <= {"```"}, page
