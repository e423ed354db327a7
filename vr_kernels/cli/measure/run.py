"""One case from beginning to end: right first, then fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from vr_kernels.cli.measure.accuracy import Verdict, errors, float64_results, judge
from vr_kernels.cli.measure.cases import Case, Inputs, make_inputs
from vr_kernels.cli.measure.contenders import (
    Contender,
    chosen_backend,
    make_contender,
    split_by_device,
    why_it_failed,
)
from vr_kernels.cli.measure.floor import Ceilings, Probe, floor
from vr_kernels.cli.measure.memory import Call, Unknown, peak_memory
from vr_kernels.cli.measure.timing import Run, Spread, paired_seconds, ratios

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    seconds: Spread
    ratio: Spread  # of its time to ours
    of_floor: float  # the floor's time over its time
    error: float  # the largest of output and gradients, against float64
    memory: int | None  # bytes, where it could be measured


@dataclass(frozen=True)
class Result:
    case: Case
    ceilings: Ceilings
    floor: float  # seconds
    verdicts: list[Verdict]
    rows: list[Row]
    absent: dict[str, str]  # what was asked for and could not be measured, with the reason


class Incorrect(Exception):
    """Ours errs by more than the rule allows."""

    def __init__(self, case: Case, verdicts: list[Verdict]) -> None:
        super().__init__("\n".join([f"{case}: wrong results, so no time is given", *map(str, verdicts)]))


def run_case(case: Case, baselines: Sequence[str], rounds: int, progress: Progress) -> Result:
    """Measure ours and the baselines. ``progress`` is told what is being done.

    Raises:
        Incorrect: before anything is timed.
    """
    progress("small shape against float64")
    small = [replace(v, quantity=f"{v.quantity} (small shape)") for v in verdicts_of(case.small())]
    _require(case, small)
    x = make_inputs(case)
    names, absent = split_by_device(baselines, case.device)
    contenders, error_of, failed = _try(case, x, list(dict.fromkeys(["ours", "naive", *names])), progress)
    absent |= failed
    full = judge(error_of["ours"], error_of["naive"])
    _require(case, full)
    contenders["ours"] = replace(contenders["ours"], what=f"vr_kernels, backend {chosen_backend(x)}")
    timed = {name: contenders[name] for name in ["ours", *names] if name in contenders}

    probe = Probe(case.torch_dtype, case.device)
    runs: dict[str, Run] = {name: partial(contender, x) for name, contender in timed.items()}
    runs |= {"GEMM": probe.multiply, "copy": probe.copy}
    progress("warming up")
    seconds = paired_seconds(runs, case.device, rounds, lambda done: progress(f"round {done} of {rounds}"))
    floors = [floor(case, probe.ceilings(*pair)) for pair in zip(seconds["GEMM"], seconds["copy"], strict=True)]

    progress("memory")
    memory: dict[str, int] = {}
    try:
        memory = peak_memory(f"{__name__}:memory_calls", {"case": asdict(case), "names": list(timed)}, case.device)
    except Unknown as error:
        absent["MB"] = str(error)
    rows = [
        Row(
            name=name,
            what=contender.what,
            seconds=Spread.of(seconds[name]),
            ratio=Spread.of(ratios(seconds[name], seconds["ours"])),
            of_floor=median(ratios(floors, seconds[name])),
            error=max(error_of[name]),
            memory=memory.get(name),
        )
        for name, contender in timed.items()
    ]
    ceilings = probe.ceilings(median(seconds["GEMM"]), median(seconds["copy"]))
    return Result(case, ceilings, median(floors), [*small, *full], rows, absent)


def _try(
    case: Case, x: Inputs, names: Sequence[str], progress: Progress
) -> tuple[dict[str, Contender], dict[str, list[float]], dict[str, str]]:
    """Run each contender once: those that can run, their errors, and why the others cannot."""
    progress("float64")
    exact = float64_results(x)
    able, error_of, absent = {}, {}, {}
    for name in names:
        progress(f"{name} against float64")
        try:
            contender = make_contender(name, case)
            error_of[name] = errors(contender(x), exact)
        except Exception as error:
            if name in ("ours", "naive"):
                raise
            absent[name] = why_it_failed(error)
        else:
            able[name] = contender
    return able, error_of, absent


def verdicts_of(case: Case) -> list[Verdict]:
    """Ours against float64, beside the naive form."""
    x = make_inputs(case)
    exact = float64_results(x)
    ours, naive = (errors(make_contender(name, case)(x), exact) for name in ("ours", "naive"))
    return judge(ours, naive)


def _require(case: Case, verdicts: list[Verdict]) -> None:
    if not all(verdict.passes for verdict in verdicts):
        raise Incorrect(case, verdicts)


def memory_calls(case: dict[str, Any], names: list[str]) -> dict[str, Call]:
    """What memory.peak_memory measures, in whichever process it does."""
    full = Case(**{**case, "levels": tuple(case["levels"])})
    x, small = make_inputs(full), make_inputs(full.small())

    def call(contender: Contender) -> Call:
        # A compiled contender is compiled for the very size, and keeps no buffer.
        warm_up: Inputs = x if contender.name in ("compiled", "flex") else small
        return Call(partial(contender, warm_up), partial(contender, x))

    return {name: call(make_contender(name, full)) for name in names}
