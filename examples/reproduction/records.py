"""Records of runs: where they stand, what every one says, and how they are written whole or not at all."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from vr_kernels.cli.environment import device_name, versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
RECORDS, MODELS = RESULTS / "records", RESULTS / "models"

# What images are made with, beside what ``versions`` names.
DATA = ("scikit-learn", "scikit-image", "matplotlib", "pillow")

Record = dict[str, Any]


def record_path(task: str, row: str, seed: int, folder: Path = RECORDS) -> Path:
    return folder / f"{task}-{row}-{seed}.json"


def code_version() -> str | None:
    """The commit that runs, with a plus where its tracked files were changed since; None outside of a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def environment(device: str) -> Record:
    """What a figure depends on beside its settings."""
    import torch

    return {
        "code": code_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions() | {name: importlib.metadata.version(name) for name in DATA},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, content: Record) -> None:
    """Under its final name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def read_record(path: Path) -> Record:
    record: Record = json.loads(path.read_text())
    return record
