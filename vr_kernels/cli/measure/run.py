"""One case from beginning to end: right first, then fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

from vr_kernels.cli.measure.accuracy import Verdict, errors, judge
from vr_kernels.cli.measure.bench import Bench, Case, Contender
from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.floor import Ceilings, Probe
from vr_kernels.cli.measure.memory import Call, Unknown, cuda_peak, peak_memory
from vr_kernels.cli.measure.timing import Run, Spread, paired_seconds, ratios

Progress = Callable[[str], object]
AnyBench = Bench[Any, Any]


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    seconds: Spread
    ratio: Spread  # of its time to ours
    of_floor: float  # the floor's time over its time
    error: float | None  # the largest of outputs and gradients, against float64; None: of another thing
    memory: int | None  # bytes, where it could be measured
    rival: bool = True


@dataclass(frozen=True)
class Result:
    case: Case
    ceilings: Ceilings
    floor: float  # seconds
    verdicts: list[Verdict]
    rows: list[Row]
    absent: dict[str, str]  # what was asked for and could not be measured, with the reason
    details: dict[str, dict[str, float]] = field(default_factory=dict)  # of each contender, what ``Bench.details`` says


class Incorrect(Exception):
    """Ours errs by more than the rule allows."""

    def __init__(self, case: Case, verdicts: list[Verdict]) -> None:
        super().__init__("\n".join([f"{case}: wrong results, so no time is given", *map(str, verdicts)]))


def run_case(bench: AnyBench, case: Case, baselines: Sequence[str], rounds: int, progress: Progress) -> Result:
    """Measure ours and the baselines. ``progress`` is told what is being done.

    Raises:
        Incorrect: before anything is timed.
    """
    progress("small shape against float64")
    small = [replace(v, quantity=f"{v.quantity} (small shape)") for v in verdicts_of(bench, case.small())]
    _require(case, small)
    x = bench.inputs(case)
    absent = {name: why for name in baselines if (why := bench.lacking(name, case)) is not None}
    names = [name for name in baselines if name not in absent]
    asked = list(dict.fromkeys(["ours", bench.yardstick, *names]))
    contenders, error_of, failed = _try(bench, case, x, asked, progress)
    absent |= failed
    full = judge(bench.quantities(case), bench.outputs, error_of["ours"], error_of[bench.yardstick], bench.truth(case))
    _require(case, full)
    contenders["ours"] = replace(contenders["ours"], what=f"vr_kernels, backend {bench.chosen(case, x)}")
    timed = {name: contenders[name] for name in ["ours", *names] if name in contenders}

    probe = Probe(case.torch_dtype, case.device)
    runs: dict[str, Run] = {name: partial(contender, x) for name, contender in timed.items()}
    runs |= {"GEMM": probe.multiply, "copy": probe.copy}
    progress("warming up")
    seconds = paired_seconds(runs, case.device, rounds, lambda done: progress(f"round {done} of {rounds}"))
    least = bench.operations(case), bench.bytes_moved(case)
    rates = zip(seconds["GEMM"], seconds["copy"], strict=True)
    floors = [probe.ceilings(*pair).floor(*least) for pair in rates]

    progress("memory")
    memory: dict[str, int] = {}
    try:
        memory = _memory(bench, case, x, timed)
    except Unknown as error:
        absent["MB"] = str(error)
    details = {}
    for name in timed:
        progress(f"details of {name}")
        details[name] = bench.details(case, x, name)
    rows = [
        Row(
            name=name,
            what=contender.what,
            seconds=Spread.of(seconds[name]),
            ratio=Spread.of(ratios(seconds[name], seconds["ours"])),
            of_floor=median(ratios(floors, seconds[name])),
            error=max(error_of[name], default=None),
            memory=memory.get(name),
            rival=contender.rival and len(error_of[name]) > 0,
        )
        for name, contender in timed.items()
    ]
    ceilings = probe.ceilings(median(seconds["GEMM"]), median(seconds["copy"]))
    return Result(case, ceilings, median(floors), [*small, *full], rows, absent, details)


def _memory(bench: AnyBench, case: Case, x: Any, timed: dict[str, Contender[Any]]) -> dict[str, int]:
    """In a process of its own on the CPU; on a GPU, where all have run already, without compiling anything again."""
    if case.device == "cuda":
        return {name: cuda_peak(partial(contender, x)) for name, contender in timed.items()}
    arguments = {"operator": bench.name, "case": asdict(case), "names": list(timed)}
    return peak_memory(f"{__name__}:memory_calls", arguments, case.device)


def _try(
    bench: AnyBench, case: Case, x: Any, names: Sequence[str], progress: Progress
) -> tuple[dict[str, Contender[Any]], dict[str, list[float]], dict[str, str]]:
    """Run each contender once: those that can run, their errors, and why the others cannot."""
    progress(bench.truth(case))
    exact = bench.exact(case, x)
    able, error_of, absent = {}, {}, {}
    for name in names:
        progress(f"{name} against {bench.truth(case)}")
        try:
            contender = bench.contender(name, case)
            error_of[name] = errors(contender(x), exact)
        except Exception as error:
            if name in ("ours", bench.yardstick):
                raise
            absent[name] = why_it_failed(error)
        else:
            able[name] = contender
    return able, error_of, absent


def verdicts_of(bench: AnyBench, case: Case) -> list[Verdict]:
    """Ours against what is exact, beside the stock form."""
    x = bench.inputs(case)
    exact = bench.exact(case, x)
    ours, stock = (errors(bench.contender(name, case)(x), exact) for name in ("ours", bench.yardstick))
    return judge(bench.quantities(case), bench.outputs, ours, stock, bench.truth(case))


def why_it_failed(error: BaseException) -> str:
    """The first line of what lies under an error: torch.compile wraps what the compiler said in several others."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


def _require(case: Case, verdicts: list[Verdict]) -> None:
    if not all(verdict.passes for verdict in verdicts):
        raise Incorrect(case, verdicts)


def memory_calls(operator: str, case: dict[str, Any], names: list[str]) -> dict[str, Call]:
    """What memory.peak_memory measures, in whichever process it does."""
    bench = BENCHES[operator]
    full = bench.case_of(case)
    x, small = bench.inputs(full), bench.inputs(full.small())

    def call(name: str) -> Call:
        contender = bench.contender(name, full)
        return Call(partial(contender, x if bench.keeps_no_buffer(name) else small), partial(contender, x))

    return {name: call(name) for name in names}
