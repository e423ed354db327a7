"""What a call launches on the GPU: how many kernels, how long each takes, and how long the call takes from outside."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vr_kernels.cli import environment
from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.run import why_it_failed

CALLS = 10


def seconds_of(run: Callable[[], object], device: str) -> float:
    """From outside, queued one after another: of a call that waits for its launches, the time that they take."""

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    finish()
    begin = time.perf_counter()
    for _ in range(CALLS):
        run()
    finish()
    return (time.perf_counter() - begin) / CALLS


def kernels_of(run: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """The kernels of one call, the longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(CALLS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
    found = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    kernels = [
        {"name": event.key, "launches": event.count / CALLS, "us": event.self_device_time_total / CALLS}
        for event in found
    ]
    return sorted(kernels, key=lambda kernel: -kernel["us"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operator", choices=BENCHES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shape", help="default: the papers'")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()

    bench, cases = BENCHES[given.operator], []
    for name in [given.shape] if given.shape else bench.default:
        case = replace(bench.shapes[name], device=given.device, dtype=given.dtype, batch=given.batch)
        x, contenders = bench.inputs(case), {}
        for contender in ["ours", *(name for name in bench.baselines if bench.lacking(name, case) is None)]:
            try:
                made = bench.contender(contender, case)
                for _ in range(3):
                    made(x)
                run = lambda made=made, x=x: made(x)  # noqa: E731
                seconds, kernels = seconds_of(run, given.device), kernels_of(run, given.device)
            except Exception as error:
                contenders[contender] = {"failed": why_it_failed(error)}
                print(f"{case.name} {contender}: {contenders[contender]['failed']}")
                continue
            launches, busy = sum(kernel["launches"] for kernel in kernels), sum(kernel["us"] for kernel in kernels)
            contenders[contender] = {"us": seconds * 1e6, "launches": launches, "busy, us": busy, "kernels": kernels}
            print(f"{case.name} {contender}: {seconds * 1e6:.0f} us a call, {launches:g} launches of {busy:.0f} us")
        cases.append({"case": case.name, "sizes": case.sizes, "contenders": contenders})
        record = {
            "launches": given.operator,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "batch": given.batch,
            "dtype": given.dtype,
            "environment": environment.report(),
            "cases": cases,
        }
        given.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
