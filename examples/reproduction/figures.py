"""The figures of a task: accuracy by step, and accuracy by cost."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from examples.reproduction.records import Record
from examples.reproduction.rows import ROWS


def draw_curves(records: dict[str, list[Record]], path: Path) -> None:
    """A panel each for seen and unseen digits; a line a row, the mean over seeds, its shade from least to most."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("seen", "unseen"), strict=True):
        for i, (row, of_row) in enumerate(records.items()):
            steps = [point["step"] for point in of_row[0]["curve"]]
            by_step = list(zip(*([point[part] for point in record["curve"]] for record in of_row), strict=True))
            colour, dashes = f"C{i % 10}", ("-", "--", ":")[i // 10 % 3]
            axes.plot(steps, [statistics.mean(v) for v in by_step], dashes, color=colour, label=ROWS[row].what)
            axes.fill_between(steps, [min(v) for v in by_step], [max(v) for v in by_step], color=colour, alpha=0.15)
        axes.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=f"{part} digits", xlabel="step", ylabel="digit accuracy", ylim=(0, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


def draw_costs(records: dict[str, list[Record]], path: Path) -> None:
    """Accuracy on unseen digits by arithmetic of a prefill; a point a run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (row, of_row) in enumerate(records.items()):
        flops = [record["cost"]["prefill_flops"] / 1e6 for record in of_row]
        accuracies = [record["accuracy"]["unseen"] for record in of_row]
        axes.plot(flops, accuracies, "os^"[i // 10 % 3], color=f"C{i % 10}", label=ROWS[row].what)
    axes.set(xlabel="MFLOP of a prefill", ylabel="digit accuracy, unseen digits", xscale="log", ylim=(0, 1))
    figure.legend(loc="outside right center", frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # Without the software's version, so that equal records give equal files.
    figure.savefig(path, dpi=100, metadata={"Software": None})
