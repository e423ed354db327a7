"""What an installation says of itself: a native module that cannot be loaded, and the version everywhere."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import vr_kernels
from vr_kernels import _C

REPOSITORY = Path(__file__).parents[1]
MODULE = Path(_C.__file__)

# The finder of an editable install would find in the clone what a copy lacks.
PROGRAM = """import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import torch, vr_kernels
from vr_kernels.ops import _native
print(_native.unavailable())
print(vr_kernels.local_attention(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 2, 2, 1, 2)).flatten().tolist())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A second copy of the package, and in it the native module, for a test to spoil."""
    shutil.copytree(Path(vr_kernels.__file__).parent, tmp_path / "vr_kernels", ignore=shutil.ignore_patterns("*.so"))
    return Path(shutil.copy(MODULE, tmp_path / "vr_kernels"))


def unavailable(module: Path) -> str:
    """What the package beside a module says of it; it computes in plain PyTorch all the same."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=module.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, result = done.stdout.splitlines()
    assert result == "[1.0, 1.0]"
    return said


def cut_to_a_half(module: Path) -> None:
    module.write_bytes(module.read_bytes()[: module.stat().st_size // 2])


def turn_to_aarch64(module: Path) -> None:
    content = module.read_bytes()
    module.write_bytes(content[:18] + (183).to_bytes(2, "little") + content[20:])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "was not built"),
    "of another Python": (
        lambda module: module.rename(module.with_name("_C.cpython-39-x86_64-linux-gnu.so")),
        "was built for cpython-39-x86_64-linux-gnu, and this Python is cpython-",
    ),
    "empty": (lambda module: module.write_bytes(b""), r"cannot be imported \(.*file too short"),
    "cut to a half": (cut_to_a_half, "is cut off: .* bytes of at least"),
    "not a library": (lambda module: module.write_text("a page of text\n" * 99), r"cannot be imported \(.*invalid ELF"),
    "of another processor": (turn_to_aarch64, "was built for aarch64, and this machine is x86_64"),
    "another library": (
        lambda module: shutil.copy(next(Path(sysconfig.get_path("platlib")).glob("torch/lib/libgomp*")), module),
        r"cannot be imported \(.*PyInit__C",
    ),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_native_module_is_named_with_its_remedy(copy: Path, spoil: str) -> None:
    change, words = SPOILT[spoil]
    change(copy)
    assert re.fullmatch(rf"vr_kernels\._C {words}.*; reinstall it with this Python: pip install .*", unavailable(copy))


def test_a_native_module_of_another_version_is_not_used(copy: Path) -> None:
    version = vr_kernels.__version__
    (copy.parent / "_version.py").write_text(f'__version__ = "{version}.post1"\n')
    assert unavailable(copy).startswith(f"vr_kernels._C is of version {version}, and vr_kernels of {version}.post1; ")


def test_an_unspoilt_copy_is_used(copy: Path) -> None:
    assert unavailable(copy) == "None"


def parsed_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", vr_kernels.__version__)[:3])


def test_the_version_is_one() -> None:
    assert _C.build_info()["version"] == vr_kernels.__version__ == importlib.metadata.version("vr-kernels")


def test_the_changelog_starts_with_this_version_or_what_is_not_released() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", vr_kernels.__version__)
    assert "Unreleased" not in headings[1:]
    released = [tuple(int(part) for part in heading.split(".")) for heading in headings if heading != "Unreleased"]
    assert released == sorted(set(released), reverse=True)
    assert all(version <= parsed_version() for version in released)
