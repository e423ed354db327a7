"""The rows of the tables, as data: what each changes of the baseline, and which table it stands in."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A model to train.

    Args:
        what: in words, for the tables.
        changes: fields of ``LlavaVRConfig``.
        features: what the blocks read: the encoder's "features", "zeros" in their place, or each window's "means".
    """

    what: str
    changes: dict[str, Any]
    features: str = "features"


LEVELS = [2, 4, 6]  # of 6 blocks, as 7, 15 and 23 of 24
POOL: dict[str, Any] = {"vr_layers": []}
LOCAL: dict[str, Any] = {"vr_levels": [6], "vr_bidirectional": False, "vr_text_guided": False}
FULL: dict[str, Any] = {"vr_levels": LEVELS}
SIDES = (2, 3, 4, 6)

ROWS: dict[str, Row] = {
    "pool": Row("pooling, no blocks", POOL),
    "local": Row("+ local attention", LOCAL),
    "multi-level": Row("+ multi-level fusion", LOCAL | FULL),
    "bidirectional": Row("+ bidirectional interaction", LOCAL | FULL | {"vr_bidirectional": True}),
    "full": Row("+ text token guidance", FULL),
    "control": Row("the same parameters, zeros in place of features", FULL, features="zeros"),
    "mlp": Row("uncompressed, no blocks", POOL | {"projector_type": "mlp"}),
    "means": Row("local attention to the window's mean alone", LOCAL, features="means"),
    "global": Row("global attention", FULL | {"vr_interaction": "global"}),
    "deformable": Row("deformable attention", FULL | {"vr_interaction": "deformable"}),
    "after-1": Row("after layer 1", FULL | {"vr_layers": [1]}),
    "after-1-4-7": Row("after layers 1, 4 and 7", FULL | {"vr_layers": [1, 4, 7]}),
}
for side in SIDES:
    if side != 3:  # which pool and full have
        ROWS[f"pool-{side}"] = Row(f"pooling, windows of {side}", POOL | {"vr_window": [side, side]})
        ROWS[f"full-{side}"] = Row(f"Vision Remember, windows of {side}", FULL | {"vr_window": [side, side]})


class Line(NamedTuple):
    """A line of a table: a row, the row that its gain is counted from, and what the paper gains there, in points."""

    row: str
    over: str | None = None
    paper: float | None = None


class Table(NamedTuple):
    title: str
    paper: str  # the table that it follows
    lines: tuple[Line, ...]


TABLES: dict[str, Table] = {
    "components": Table(
        "Components",
        "v2, Table 5a",
        (
            Line("pool"),
            Line("local", "pool", 2.8),
            Line("multi-level", "local", 0.6),
            Line("bidirectional", "multi-level", 0.3),
            Line("full", "bidirectional", 0.1),
            Line("control", "full"),
            Line("means", "local"),
            Line("mlp", "pool"),
        ),
    ),
    "interaction": Table(
        "Interaction",
        "v2, Table 5b",
        (Line("full"), Line("global", "full", -3.0), Line("deformable", "full", -1.6)),
    ),
    "insertion": Table(
        "Insertion",
        "v2, Table 5c",
        (Line("full"), Line("after-1", "full", -0.4), Line("after-1-4-7", "full", 0.0)),
    ),
    "ratio": Table(
        "Compression ratio",
        "v2, Table 2; windows of 6 are ours",
        (
            Line("pool-2"),
            Line("full-2", "pool-2", 2.4),
            Line("pool"),
            Line("full", "pool", 3.0),
            Line("pool-4"),
            Line("full-4", "pool-4", 4.4),
            Line("pool-6"),
            Line("full-6", "pool-6"),
        ),
    ),
}
SEEDS = (0, 1, 2)


def runs() -> list[tuple[str, int]]:
    """All rows and seeds, in the order in which they are worth having: by table, and in it by seed."""
    ordered = [(line.row, seed) for table in TABLES.values() for seed in SEEDS for line in table.lines]
    return list(dict.fromkeys(ordered))
