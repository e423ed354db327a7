"""One call of each contender, for a profiler around this program: what it sees is what is between start and stop.

ncu --profile-from-start off --csv --log-file counters.csv python bench/one_call.py local_cross_attention triton cuda
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.run import why_it_failed


def call_once(run: Callable[[], object], device: str) -> None:
    for _ in range(3):  # what is compiled and allocated once is not looked at
        run()
    if device == "cuda":
        torch.cuda.profiler.start()  # it waits for what was launched before
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def outcome(make: Callable[[], Callable[[Any], object]], x: Any, device: str) -> str:
    try:
        call_once(functools.partial(make(), x), device)
    except Exception as error:
        return why_it_failed(error)
    return "called"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operator", choices=BENCHES)
    parser.add_argument("contender", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shape", help="default: the papers'")
    given = parser.parse_args()

    bench = BENCHES[given.operator]
    for name in [given.shape] if given.shape else bench.default:
        case = replace(bench.shapes[name], device=given.device, dtype=given.dtype, batch=given.batch)
        x = bench.inputs(case)
        for contender in given.contender:
            made = functools.partial(bench.contender, contender, case)
            print(f"{name} {contender}: {outcome(made, x, given.device)}")


if __name__ == "__main__":
    main()
