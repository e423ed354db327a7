"""What a command asks before it starts to work, each with one sentence where the answer is no."""

import importlib.util
import sys
from pathlib import Path


def require(extra: str, *packages: str) -> None:
    """Leave with exit code 1 if one of ``packages`` is missing, naming the extra that brings it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            sys.exit(f'vr-kernels: {package} is not installed; this needs pip install "vr-kernels[{extra}]"')


def require_folder(*files: Path | None) -> None:
    """Leave with exit code 1 if a file that is to be written in the end has no folder to go to."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            sys.exit(f"vr-kernels: {file} cannot be written: there is no folder {file.parent}")
