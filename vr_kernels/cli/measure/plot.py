"""A benchmark as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from matplotlib.figure import Figure

from vr_kernels.cli.environment import device_name
from vr_kernels.cli.measure.report import figures
from vr_kernels.cli.measure.run import AnyBench, Result


def plot(bench: AnyBench, results: Sequence[Result], path: Path) -> None:
    """One panel a case: a bar a contender, its ratio to ours at the bar's end, the floor as a line."""
    figure = Figure(figsize=(10, 1.2 + sum(0.7 + 0.42 * len(result.rows) for result in results)), layout="constrained")
    panels = figure.subplots(
        len(results), 1, squeeze=False, gridspec_kw={"height_ratios": [1.6 + len(result.rows) for result in results]}
    )
    for axes, result in zip(panels[:, 0], results, strict=True):
        case, rows = result.case, result.rows
        milliseconds = [row.seconds.median * 1e3 for row in rows]
        spread = [
            [(row.seconds.median - row.seconds.low) * 1e3 for row in rows],
            [(row.seconds.high - row.seconds.median) * 1e3 for row in rows],
        ]
        colours = ["tab:orange" if row.name == "ours" else "tab:gray" for row in rows]
        axes.barh(range(len(rows)), milliseconds, xerr=spread, color=colours, ecolor="black", capsize=3)
        for i, row in enumerate(rows):
            label = figures(row.seconds.median * 1e3) + " ms"
            if row.name != "ours":
                label += f", {row.ratio.median:.2f} x ours"
            axes.text(row.seconds.high * 1e3, i, f"  {label}", va="center")
        axes.axvline(
            result.floor * 1e3, color="tab:green", linestyle="--", label=f"floor {figures(result.floor * 1e3)} ms"
        )
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(row.seconds.high for row in rows) * 1e3)
        axes.set_xlabel("milliseconds (median; whiskers: 10-90 %); ratios are medians over rounds")
        axes.set_title(f"{case.name}: {case.sizes}", loc="left")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    case = results[0].case
    figure.suptitle(
        f"{bench.title}, {case.direction}, {case.dtype}: time, less is better\n"
        f"{device_name(case.device)}, {date.today().isoformat()}"
    )
    figure.savefig(path, dpi=120)
