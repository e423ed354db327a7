"""``bench/tables.py``: the page and the README's table say what a record says, and no more."""

from __future__ import annotations

import json
import re
from typing import Any

from python_tests.test_docs import PAGES, ROOT, bench_script

Record = dict[str, Any]


def row(name: str, what: str, ratio: float) -> Record:
    spread = {"low": ratio, "median": ratio, "high": ratio}
    return {"name": name, "what": what, "seconds": spread, "ratio": spread, "of_floor": 0.5, "memory": None}


def case(shape: str, backend: str) -> Record:
    others = [row("maps", "eager", 2.0), row("blocked", "plain PyTorch", 0.5), row("compiled", "compiled", 0.9)]
    losses = [f"Ours loses to {name} here: {name} takes 0.5 times our time." for name in ("blocked", "compiled")]
    facts = {"name": shape, "dtype": "float32", "backward": False, "device": "cpu"}
    rows = [row("ours", f"vr_kernels, backend {backend}", 1.0), *others]
    return {"case": facts, "rows": rows, "losses": losses, "absent": {}}


def test_ours_is_named_for_each_shape_where_its_backend_differs() -> None:
    shapes = [case("small", "blocked"), case("large", "cpu"), case("huge", "cpu")]
    assert bench_script("tables")._contenders(shapes) == [
        "* `ours` at small: vr_kernels, backend blocked",
        "* `ours` at large, huge: vr_kernels, backend cpu",
        "* `maps`: eager",
        "* `blocked`: plain PyTorch",
        "* `compiled`: compiled",
    ]


def test_ours_neither_loses_to_itself_nor_has_itself_as_the_closest_other() -> None:
    tables, record = bench_script("tables"), {"yardstick": "maps"}
    small, large = case("small", "blocked"), case("large", "cpu")
    assert tables._closest(record, small) == "0.90 compiled"
    assert tables._closest(record, large) == "0.50 blocked"
    others = ["maps", "blocked", "compiled"]
    assert tables._of_case(small, others, "maps")[2:5] == ["2.00 (2.00-2.00)", "", "0.90 (0.90-0.90)"]
    assert tables._of_case(large, others, "maps")[2:5] == ["2.00 (2.00-2.00)", "0.50 (0.50-0.50)", "0.90 (0.90-0.90)"]
    assert tables._remarks(small) == [
        "Ours loses to compiled here: compiled takes 0.5 times our time.",
        "`blocked` is what ours is here: measured twice, one takes 0.50 (0.50-0.50) times the other's time.",
    ]
    assert tables._remarks(large) == large["losses"]


def test_the_page_of_attention_received_says_where_cpu_lost_as_it_was_recorded() -> None:
    page = " ".join(PAGES["docs/operators/attention_received.md"].split())
    for dtype in ("float32", "bfloat16"):
        name = f"bench/results/earlier/attention_received_cpu_{dtype}_forward.json"
        record = json.loads((ROOT / name).read_text())
        (siglip,) = [case for case in record["cases"] if case["case"]["name"] == "siglip"]
        rows = {row["name"]: row for row in siglip["rows"]}
        assert rows["ours"]["what"] == "vr_kernels, backend cpu"
        assert f"{siglip['case']['tokens']} tokens" in page
        assert f"{rows['blocked']['ratio']['median']:.2f} of `cpu`'s time in {dtype}" in page
        assert f"{record['environment']['CPU']['model']}, {record['date'][:10]}" in page
    assert re.search(r"`bench/results/earlier`", page)


def test_what_was_not_measured_is_what_no_record_has() -> None:
    """A record of what the README lists as not measured must be followed by a shorter list."""
    found = {(record["operator"], case["case"]["dtype"], case["case"]["backward"])
             for record in bench_script("tables").records() for case in record["cases"]
             if case["case"]["device"] == "cpu"}  # fmt: skip
    operators, dtypes = {operator for operator, _, _ in found}, {dtype for _, dtype, _ in found}
    assert dtypes == {"float32", "bfloat16"}
    assert not operators & {"local_attention", "text_guide_token", "gather_tokens", "scatter_add_tokens"}
    assert ("deformable_attention", "bfloat16", False) not in found
    readme = " ".join(PAGES["README.md"].split())
    unmeasured = readme.partition("Not measured: anything on a GPU;")[2]
    for words in (
        "`local_attention`, float16, `deformable_attention` in bfloat16",
        "any backward but those in the table",
    ):
        assert words in unmeasured
