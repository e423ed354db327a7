"""What runs under the old transformers: a process of its own, which hands over what came out in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.agreement.compare import DTYPES
from examples.agreement.sources import OLD_TRANSFORMERS, ROOT


def run(name: str) -> list[dict[str, Any]]:
    """The cases of both dtypes."""
    if not OLD_TRANSFORMERS.exists():
        raise FileNotFoundError(f"{OLD_TRANSFORMERS} is not there; `python -m examples.agreement fetch` fetches it")
    paths = [str(OLD_TRANSFORMERS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.pt"
        command = [sys.executable, "-W", "ignore", "-m", "examples.agreement.old", name, str(file)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        cases: list[dict[str, Any]] = torch.load(file, weights_only=True)
    return cases


def main() -> None:
    import transformers

    from examples.agreement import deformable, old_clip, old_llama

    def deformables(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
        return (asdict(row) for row in deformable.deformable(dtype))

    dumps: dict[str, Callable[[torch.dtype], Iterator[dict[str, Any]]]] = {
        "deformable": deformables, "visionzip": old_clip.visionzip, "vispruner": old_clip.vispruner,
        "fastv": old_llama.fastv, "pyramiddrop": old_llama.pyramiddrop, "sparsevlm": old_llama.sparsevlm,
    }  # fmt: skip
    name, file = sys.argv[1:]
    if not transformers.__file__.startswith(str(OLD_TRANSFORMERS)):
        raise RuntimeError(f"transformers is {transformers.__file__}, not that of {OLD_TRANSFORMERS}")
    torch.save([case for dtype in DTYPES for case in dumps[name](dtype)], file)


if __name__ == "__main__":
    main()
