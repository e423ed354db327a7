"""What `make fuzz FUZZ_RECORD=...` counts, in one JSON file: begun here, and each fuzzer adds its part.

VR_KERNELS_FUZZ_RECORD=FILE python -m python_tests.fuzz.record "make fuzz FUZZ_EXAMPLES=..."
"""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vr_kernels.cli import environment

PATH = os.environ.get("VR_KERNELS_FUZZ_RECORD")
FUZZERS = ("hypothesis", "atheris")


def add(kind: str, name: str, counts: Mapping[str, int]) -> None:
    """Where a record is asked for. Several processes may add to it at once."""
    if not PATH:
        return
    with Path(PATH).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = json.load(file)
        record.setdefault(kind, {})[name] = dict(counts)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(record, indent=1, sort_keys=True) + "\n")


def main() -> None:
    assert PATH, "VR_KERNELS_FUZZ_RECORD names no file"
    record = {
        "command": sys.argv[1],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "CPU": environment.cpu(),
        "versions": environment.versions() | {name: importlib.metadata.version(name) for name in FUZZERS},
    }
    Path(PATH).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
