"""The comparisons by name, and their record."""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch

from examples.agreement import clip, fusion, llama, old, projectors, resamplers
from examples.agreement.compare import DTYPES, Row
from examples.agreement.pixel_shuffle import pixel_shuffle
from examples.agreement.sources import OLD_PACKAGES, ROOT, SOURCES
from examples.reproduction.records import read_record, write_json
from vr_kernels.cli.environment import device_name, versions

RECORD = ROOT / "docs" / "results" / "agreement.json"

# By dtype, in this process.
HERE: dict[str, Callable[[torch.dtype], Iterable[Row]]] = {
    "mlp": projectors.mlp, "ldpv2": projectors.ldpv2, "pixel_shuffle": pixel_shuffle, "perceiver": resamplers.perceiver,
    "token_packer": resamplers.token_packer, "stf": projectors.stf,
    "deepstack": fusion.deepstack, "sva": fusion.sva,
}  # fmt: skip
# From what came out of the old transformers.
OLD: dict[str, Callable[[list[dict[str, Any]]], Iterable[Row]]] = {
    "deformable": lambda cases: [Row(**case) for case in cases],
    "visionzip": clip.visionzip,
    "vispruner": clip.vispruner,
    "fastv": lambda cases: llama.rows("FastV", cases),
    "pyramiddrop": lambda cases: llama.rows("PyramidDrop", cases),
    "sparsevlm": lambda cases: llama.rows("SparseVLM", cases),
}
METHODS = (*HERE, *OLD)


def compared(name: str) -> list[Row]:
    with contextlib.redirect_stdout(io.StringIO()):  # some of their modules print
        if name in HERE:
            return [row for dtype in DTYPES for row in HERE[name](dtype)]
        return list(OLD[name](old.run(name)))


def write_record(rows: Iterable[Row]) -> None:
    content = {
        "command": "python -m examples.agreement",
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "old": list(OLD_PACKAGES),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sources": {source.repository: source.commit for source in SOURCES.values()},
        "rows": [{name: value for name, value in asdict(row).items() if value not in (None, "")} for row in rows],
    }
    write_json(RECORD, content)


def recorded() -> list[Row]:
    return [Row(**{"outputs": None} | row) for row in read_record(RECORD)["rows"]]
