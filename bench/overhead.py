"""What a call costs beside its work on the CPU, its checks and its dispatch, without gradients, with, and in inference.

A round times a tiny call of each operator and the implementation that it ends in, with the arguments it is given there,
one after the other. What disturbs a call of some microseconds only lengthens it: so the overhead is the least time of
the one less the least of the other, and the rounds' own differences stand beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import vr_kernels
from vr_kernels.cli import environment
from vr_kernels.cli.measure.timing import Spread

CALLS = 50  # timed together: reading the clock takes far less than they do
SURROUNDINGS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "grad": torch.enable_grad}

Call = Callable[[], object]


def calls(*, grad: bool) -> dict[str, Call]:
    """Of the operators that are one call of their implementation, and nothing behind it."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=grad)

    query, key = draw(1, 2, 2, 2, 16), draw(1, 4, 4, 2, 16)
    token, features, weight = draw(1, 2, 2, 32), draw(1, 4, 4, 32), draw(32, 32)
    hidden_states, update, rows = draw(1, 16, 32), draw(1, 3, 32), torch.tensor([[3, 5, 7]])
    ops = vr_kernels
    return {
        "local_attention": lambda: ops.local_attention(query, key, key),
        "local_cross_attention": lambda: ops.local_cross_attention(token, features, weight, weight, num_heads=2),
        "gather_tokens": lambda: ops.gather_tokens(hidden_states, rows),
        "scatter_add_tokens": lambda: ops.scatter_add_tokens(hidden_states, rows, update),
    }


def implementation(operator: str, call: Call) -> Call:
    """What ``call`` ends in, by itself."""
    op = importlib.import_module(f"vr_kernels.ops.{operator}.op")
    with mock.patch.object(op, "run", side_effect=op.run) as run:
        call()
    return lambda: op.forward(*run.call_args.args)


def microseconds(call: Call) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS * 1e6


def measured(operator: str, surrounding: str, rounds: int) -> dict[str, Any]:
    with SURROUNDINGS[surrounding]():
        call = calls(grad=surrounding == "grad")[operator]
        inner = implementation(operator, call)
        whole, work = [], []
        for turn in range(rounds + 1):
            outside = microseconds(call)
            with torch.no_grad() if surrounding == "grad" else SURROUNDINGS[surrounding]():
                inside = microseconds(inner)
            if turn:  # the first round warms up
                whole.append(outside)
                work.append(inside)
    return {
        "operator": operator,
        "surrounding": surrounding,
        "whole": min(whole),
        "least": min(whole) - min(work),
        "differences": Spread.of([a - b for a, b in zip(whole, work, strict=True)])._asdict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measured(operator, surrounding, given.rounds) for operator in calls(grad=False) for surrounding in SURROUNDINGS
    ]
    record = {
        "overhead": "us",
        "measured": False,  # not one of `vr-kernels bench`, of which the tables are made
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment.report(),
        "rows": rows,
    }
    given.json.write_text(json.dumps(record, indent=2) + "\n")
    for row in rows:
        print(f"{row['operator']} {row['surrounding']}: {row['least']:.1f} us of {row['whole']:.1f}")


if __name__ == "__main__":
    main()
