"""The figures of a task: accuracy by step, by tokens, and by cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.reproduction.cost import image_tokens
from examples.reproduction.estimates import Estimate, estimate
from examples.reproduction.records import Record
from examples.reproduction.rows import ROWS
from examples.reproduction.task import PARTS, Task

Curve = list[Record]


def draw_curves(task: Task, records: dict[str, list[Record]], path: Path) -> None:
    """A panel each for what is seen and unseen; a line a row, the mean over seeds, its shade the 95 % interval.

    A row that was not trained is a level line.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    last = max((point["step"] for of_row in records.values() for r in of_row for point in r["curve"]), default=1)
    for axes, part in zip(panels, PARTS, strict=True):
        for i, (row, of_row) in enumerate(records.items()):
            colour, dashes = f"C{i % 10}", ("-", "--", ":")[i // 10 % 3]
            if of_row[0]["curve"]:
                steps, by_step = _by_step([record["curve"] for record in of_row], part)
            else:
                steps, by_step = [0, last], [estimate([record["accuracy"][part] for record in of_row])] * 2
            axes.plot(steps, [point.mean for point in by_step], dashes, color=colour, label=row)
            _shade(axes, steps, by_step, colour)
        _guess(axes, task)
        axes.set(title=part, xlabel="step", ylabel=f"{task.unit} accuracy", ylim=(0, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


def draw_ratio(task: Task, records: dict[str, list[Record]], path: Path) -> None:
    """Accuracy on what is unseen by the tokens of an image, a line each for pooling and Vision Remember."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    for i, (start, label) in enumerate((("pool", "pooling"), ("full", "Vision Remember"))):
        points = sorted(
            (image_tokens(task, ROWS[row])[0], estimate([record["accuracy"]["unseen"] for record in of_row]))
            for row, of_row in records.items()
            if row.split("-")[0] == start
        )
        if points:
            tokens, estimates = [count for count, _ in points], [value for _, value in points]
            axes.plot(tokens, [value.mean for value in estimates], "o-", color=f"C{i}", label=label)
            _shade(axes, tokens, estimates, f"C{i}")
    _guess(axes, task)
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set(xlabel="tokens of an image", ylabel=f"{task.unit} accuracy, unseen", ylim=(0, 1))
    counts = sorted({image_tokens(task, ROWS[row])[0] for row in records})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.legend(frameon=False)
    _save(figure, path)


def draw_costs(task: Task, records: dict[str, list[Record]], path: Path) -> None:
    """Accuracy on what is unseen by arithmetic of a prefill; a point a run."""
    figure = Figure(figsize=(10, max(5, 0.22 * len(records))), layout="constrained")
    axes = figure.subplots()
    for i, (row, of_row) in enumerate(records.items()):
        flops = [record["cost"]["prefill_flops"] / 1e6 for record in of_row]
        accuracies = [record["accuracy"]["unseen"] for record in of_row]
        axes.plot(flops, accuracies, "os^vD"[i // 10 % 5], color=f"C{i % 10}", label=row)
    _guess(axes, task)
    axes.set(xlabel="MFLOP of a prefill", ylabel=f"{task.unit} accuracy, unseen", xscale="log", ylim=(0, 1))
    figure.legend(loc="outside right center", frameon=False)
    _save(figure, path)


def _by_step(curves: Sequence[Curve], part: str) -> tuple[list[int], list[Estimate]]:
    """The steps of one seed's curve, and over all seeds the accuracy at each."""
    steps = [point["step"] for point in curves[0]]
    return steps, [estimate([point[part] for point in points]) for points in zip(*curves, strict=True)]


def _shade(axes: Any, x: Sequence[int], estimates: Sequence[Estimate], colour: str) -> None:
    """No shade for a single seed, of which no interval is known."""
    if len(x) > 0 and all(value.spread for value in estimates):
        low = [value.mean - value.half for value in estimates]
        high = [value.mean + value.half for value in estimates]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _guess(axes: Any, task: Task) -> None:
    """The line of who does not look at the image."""
    axes.axhline(task.guess, color="black", linewidth=0.8, linestyle=":")


def _save(figure: Figure, path: Path) -> None:
    # Without the software's version, so that equal records give equal files.
    figure.savefig(path, dpi=100, metadata={"Software": None})
