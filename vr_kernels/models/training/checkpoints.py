"""Folders that appear under their final name only when they are whole."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

STAGING = ".staging"  # inside the output folder, and so on its file system: a rename there is atomic
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def publish(staged: Path, final: Path) -> None:
    """Renames a folder once everything in it is on the disk; one that has the final name already makes way.

    Whenever the process is killed the final name is that of a whole folder; but on a file system that cannot exchange
    two names at once there is none for a moment, where one makes way.
    """
    for path in (*staged.rglob("*"), staged):
        _flush(path)
    if not (final.exists() and _exchange(staged, final)):
        if final.exists():
            old = staged.with_name(f"{staged.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(staged.parent)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def keep_newest(folder: Path, number: int | None) -> None:
    """Deletes all but the newest checkpoints; None keeps all. What is being deleted has its final name no more."""
    if number is None:
        return
    for path in checkpoints(folder)[:-number]:
        doomed = folder / STAGING / path.name
        doomed.parent.mkdir(exist_ok=True)
        path.rename(doomed)
        shutil.rmtree(doomed.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Gives each of two folders the other's name, at once; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
