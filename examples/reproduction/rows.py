"""The rows of the tables, as data: what each changes of the baseline, and which table it stands in."""

from __future__ import annotations

from typing import Any, NamedTuple


class Pruning(NamedTuple):
    """A way to drop tokens of the trained model of the row ``BASE``, which is not trained for it.

    Args:
        method: "visionzip", or a method of ``apply_pruning``.
        options: of ``apply_visionzip`` or ``apply_pruning``.
    """

    method: str
    options: dict[str, Any]


class Row(NamedTuple):
    """A model to train, or with ``pruning`` one to test.

    Args:
        what: in words, for the tables.
        changes: fields of ``LlavaVRConfig``.
        features: what the blocks read: the encoder's "features", "zeros" in their place, or each window's "means".
        decoder: fields of the decoder's ``Qwen2Config``.
        blocks: a key of ``blocks.BLOCKS``, which stand in the place of Vision Remember.
        pruning: how tokens are dropped, without training.
    """

    what: str
    changes: dict[str, Any]
    features: str = "features"
    decoder: dict[str, Any] | None = None
    blocks: str = "vision_remember"
    pruning: Pruning | None = None


DEPTH = 8  # of the decoder, so that blocks may stand after the seventh layer, as in the paper
LEVELS = [2, 4, 6]  # of 6 blocks, as 7, 15 and 23 of 24
BASE = "mlp"  # the uncompressed model, which is pruned
KEPT = 1 / 9  # of the tokens, as pooling does

POOL: dict[str, Any] = {"vr_layers": []}
LOCAL: dict[str, Any] = {"vr_levels": [6], "vr_bidirectional": False, "vr_text_guided": False}
FULL: dict[str, Any] = {"vr_levels": LEVELS}
OTHER: dict[str, Any] = LOCAL | FULL  # blocks with neither a bidirectional layer nor a guide
UNCOMPRESSED: dict[str, Any] = POOL | {"projector_type": "mlp"}
SIDES = (2, 3, 4, 6)

ROWS: dict[str, Row] = {
    "pool": Row("pooling, no blocks", POOL),
    "local": Row("+ local attention", LOCAL),
    "multi-level": Row("+ multi-level fusion", LOCAL | FULL),
    "bidirectional": Row("+ bidirectional interaction", LOCAL | FULL | {"vr_bidirectional": True}),
    "full": Row("+ text token guidance, the whole of Vision Remember", FULL),
    "control": Row("the same parameters, zeros in place of features", FULL, features="zeros"),
    "mlp": Row("uncompressed, no blocks", UNCOMPRESSED),
    "means": Row("local attention to the window's mean alone", LOCAL, features="means"),
    "global": Row("global attention", FULL | {"vr_interaction": "global"}),
    "deformable": Row("deformable attention", FULL | {"vr_interaction": "deformable"}),
    "after-1": Row("after layer 1", FULL | {"vr_layers": [1]}),
    "after-1-4-7": Row("after layers 1, 4 and 7", FULL | {"vr_layers": [1, 4, 7]}),
    "sva": Row("SVA aggregator", OTHER, blocks="sva"),
    "deepstack": Row("DeepStack", OTHER | {"vr_layers": [1, 2, 3]}, blocks="deepstack"),
    "saliency": Row("multi-level fusion with v1's saliency", OTHER | {"vr_saliency": "value"}),
    "wide": Row("pooling, a wider decoder, the arithmetic of full", POOL, decoder={"intermediate_size": 410}),
    "fastv": Row(
        "FastV, 16 tokens after layer 2", UNCOMPRESSED, pruning=Pruning("fastv", {"layer": 2, "keep_ratio": KEPT})
    ),
    "pyramiddrop": Row(
        "PyramidDrop, 72, 36 and 18 tokens after layers 2, 4 and 6",
        UNCOMPRESSED,
        pruning=Pruning("pyramiddrop", {"layers": [2, 4, 6], "keep_ratios": [0.5, 0.25, 0.125]}),
    ),
    "vispruner": Row("VisPruner, 16 tokens", UNCOMPRESSED, pruning=Pruning("vispruner", {"count": 16})),
    "visionzip": Row(
        "VisionZip, 14 dominant and 2 contextual tokens",
        UNCOMPRESSED,
        pruning=Pruning("visionzip", {"dominant": 14, "contextual": 2}),
    ),
    "random": Row(
        "16 tokens by chance after layer 2", UNCOMPRESSED, pruning=Pruning("random", {"layer": 2, "keep_ratio": KEPT})
    ),
}
for side in SIDES:
    if side != 3:  # which pool and full have
        ROWS[f"pool-{side}"] = Row(f"pooling, windows of {side}", POOL | {"vr_window": [side, side]})
        ROWS[f"full-{side}"] = Row(f"Vision Remember, windows of {side}", FULL | {"vr_window": [side, side]})

# Fields of the config. Of several levels a projector reads those that its authors' are of 24 blocks; 6 is the last.
PROJECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixel-shuffle": ("PixelShuffle", {"projector_type": "pixel_shuffle"}),
    "perceiver": ("Perceiver", {"projector_type": "perceiver", "projector_options": {"query_grid": [4, 4]}}),
    "ldpv2": ("LDPv2", {"projector_type": "ldpv2"}),
    "token-packer": ("TokenPacker", {"projector_type": "token_packer", "vision_feature_layer": [3, 4, 5, 6]}),
    "deformable-projector": ("deformable", {"projector_type": "deformable", "vision_feature_layer": LEVELS}),
    "token-concat": ("TokenConcat", {"projector_type": "concat"}),
    "stf": ("STF", {"projector_type": "stf", "vision_feature_layer": [1, 2, 3, 4, 5, 6]}),
}
for name, (what, fields) in PROJECTORS.items():
    ROWS[name] = Row(f"{what}, no blocks", POOL | fields)
    ROWS[f"{name}-full"] = Row(f"{what} with Vision Remember", FULL | fields)


class Line(NamedTuple):
    """A line of a table: a row, the row that its gain is counted from, and what the paper gains there, in points."""

    row: str
    over: str | None = None
    paper: float | None = None


class Table(NamedTuple):
    title: str
    paper: str  # the table that it follows
    lines: tuple[Line, ...]
    note: str = ""


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
    "effect": Table(
        "Compressed, and remembered",
        "v2, Table 5a, its ends",
        (
            Line("mlp", "pool"),
            Line("pool"),
            Line("control", "pool"),
            Line("local", "pool", 2.8),
            Line("full", "pool", 3.8),
        ),
    ),
    "interaction": Table(
        "Interaction",
        "v2, Table 5b",
        (Line("full"), Line("global", "full", -3.0), Line("deformable", "full", -1.6)),
        "Transformers' optimizer tells norms by their names: it decays the norm weights of `full` and `global`, which "
        "are parameters of the attention itself, and not those of `deformable`, which are modules.",
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
    "refusion": Table(
        "Other ways to read features again",
        "v2, Table 3, Qwen2-0.5B",
        (Line("pool"), Line("sva", "pool", -0.4), Line("deepstack", "pool", -0.9), Line("full", "pool", 3.0)),
        "All are trained with their blocks from the start, on the levels of `full`: SVA after layers 1 and 4, of width "
        "128 with 4 heads where Cambrian's has 1024 with 16; DeepStack after layers 1, 2 and 3, a level each, as "
        "Qwen3-VL. The blocks of `full` start as the identity, and those of the others do not; the norms of the others "
        "are not decayed (see Interaction).",
    ),
    "methods": Table(
        "Other methods",
        "v2, Table 4, Qwen2-0.5B",
        (
            Line("full"),
            Line("fastv", "full", -5.7),
            Line("pyramiddrop", "full", -3.2),
            Line("vispruner", "full", -1.9),
            Line("visionzip", "full"),
            Line("random", "full"),
            Line("pool", "full", -3.0),
            Line("token-packer", "full", -2.7),
            Line("stf", "full"),
            Line("mlp", "full"),
        ),
        "FastV, PyramidDrop, VisPruner, VisionZip and dropping by chance are free of training: they drop tokens of the "
        "trained `mlp` while it is tested. FastV, PyramidDrop and chance begin after layers that see all tokens, which "
        "here are a quarter of the decoder: by *tokens* they have more than the 16 of the others. The encoder has no "
        "CLS row; VisPruner and VisionZip rank by the attention that patches receive, and do not know the question, "
        "which may be about any patch.",
    ),
    "projectors": Table(
        "Projectors",
        "v2, Table 1; those without a figure are not in it",
        (
            Line("pool"),
            Line("full", "pool", 3.0),
            *(
                line
                for name, paper in zip(PROJECTORS, (3.4, 4.6, 2.0, None, None, None, None), strict=True)
                for line in (Line(name, "pool"), Line(f"{name}-full", name, paper))
            ),
        ),
        "All make 16 tokens. Perceiver's queries read the whole image; a block gives each the region of its place in a "
        "grid of 4x4.",
    ),
    "compute": Table(
        "Saliency, and compute",
        "v1, §4.2; the wider decoder is ours",
        (Line("multi-level"), Line("saliency", "multi-level"), Line("full"), Line("wide", "full")),
        "The encoder has no CLS row: saliency is the attention that patches receive.",
    ),
}
SEEDS = (0, 1, 2)


def runs(tables: tuple[str, ...]) -> list[tuple[str, int]]:
    """All rows of the tables with all seeds, in the order in which they are worth having: by table, and in it by seed;
    what is pruned before what prunes it."""
    ordered: list[tuple[str, int]] = []
    for table in tables:
        for seed in SEEDS:
            for line in TABLES[table].lines:
                if ROWS[line.row].pruning is not None:
                    ordered.append((BASE, seed))
                ordered.append((line.row, seed))
    return list(dict.fromkeys(ordered))
