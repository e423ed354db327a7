"""The second act: an operator on a photograph's features, in place of what stock PyTorch does."""

from __future__ import annotations

from functools import partial

import torch
import typer
from matplotlib.figure import SubFigure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vr_kernels import LocalCrossAttention
from vr_kernels.cli.demonstration import features, photograph_figure, resampler
from vr_kernels.cli.demonstration.resampler import WindowResampler
from vr_kernels.cli.measure.accuracy import OUTPUT_RULE, Verdict, error
from vr_kernels.cli.measure.memory import METHODS, Unknown, peak_memory
from vr_kernels.cli.measure.report import figures, megabytes
from vr_kernels.cli.measure.timing import Spread, paired_seconds, ratios
from vr_kernels.cli.progress import progress

HEADS = 24


def show(console: Console, size: features.Size, rounds: int, figure: SubFigure) -> None:
    """Compares outputs, then times and memory; draws attention, saliency, and the tokens that VisionZip keeps.

    Exits with code 1 if the outputs disagree.
    """
    image = features.photograph()
    with progress("vision transformer") as tell:
        levels, saliency, zipped = features.encode(image, size, tell)
    query = resampler.pooled_tokens(levels)
    stock, ours = resampler.make_resamplers([size.width] * len(levels), HEADS)
    console.print(
        f"Photograph: {image.shape[2]}x{image.shape[1]} pixels, as {size.tiles} tile(s) of {features.PIXELS}.\n"
        f"Encoder: SigLIP's architecture, {size.layers} layers of width {size.width}, random weights (seed 0).\n"
        f"Features: {len(levels)} levels {tuple(levels[0].shape)}. Tokens: {tuple(query.shape)}, one a window of "
        f"{resampler.WINDOW}x{resampler.WINDOW}.\n"
        f"Stock: concat, partition, nn.MultiheadAttention({query.shape[-1]}, {HEADS}).\n"
        "Ours: LocalCrossAttention.from_multihead_attention(stock.attention, widths)."
    )
    _compare_outputs(console, stock, ours, query, levels)
    _compare_costs(console, stock, ours, query, levels, rounds)
    with torch.inference_mode():
        _, attention = ours(query, levels, need_weights=True)
    photograph_figure.draw(figure, image, attention[0], saliency[0], zipped, features.DOMINANT)


def _compare_outputs(
    console: Console, stock: WindowResampler, ours: LocalCrossAttention, query: Tensor, levels: list[Tensor]
) -> None:
    """Exits with code 1 if they disagree by more than rounding."""
    from_stock, from_ours = (resampler.resample(module, query, levels) for module in (stock, ours))
    exact = resampler.in_float64(stock, query, levels)
    difference = (from_ours - from_stock).abs().max().item()
    verdict = Verdict("output", error(from_ours, exact), error(from_stock, exact), OUTPUT_RULE)
    console.print(
        f"\nLargest difference of the outputs: {difference:.1e}, {error(from_ours, from_stock.double()):.1e} of the "
        f"largest value. Rounding alone puts stock {verdict.stock:.1e} from float64.\nOurs is {verdict.ours:.1e} from "
        f"it, and may be at most {OUTPUT_RULE:g} times as far as stock: "
        f"{'the outputs agree.' if verdict.passes else 'THE OUTPUTS DISAGREE.'}"
    )
    if not verdict.passes:
        raise typer.Exit(1)


def _compare_costs(
    console: Console,
    stock: WindowResampler,
    ours: LocalCrossAttention,
    query: Tensor,
    levels: list[Tensor],
    rounds: int,
) -> None:
    images, grid = levels[0].shape[:2]
    arguments = {"widths": [level.shape[-1] for level in levels], "heads": HEADS, "images": images, "grid": grid}
    memory, method = {}, METHODS["cpu"]
    with progress("time and memory") as tell:
        tell("warming up")
        modules = {"stock": stock, "ours": ours}
        runs = {name: partial(resampler.resample, module, query, levels) for name, module in modules.items()}
        seconds = paired_seconds(runs, "cpu", rounds, lambda done: tell(f"round {done} of {rounds}"))
        tell("memory")
        try:
            memory = peak_memory(f"{resampler.__name__}:memory_calls", arguments, "cpu")
        except Unknown as reason:
            method = f"not measured ({reason})"
    table = Table("float32, CPU", "ms", "10-90 %", "MB", box=SIMPLE_HEAD)
    for name, taken in seconds.items():
        low, median, high = (figures(value * 1e3) for value in Spread.of(taken))
        table.add_row(name, median, f"{low}-{high}", megabytes(memory.get(name)))
    console.print(table)
    ratio = Spread.of(ratios(seconds["stock"], seconds["ours"]))
    console.print(
        f"Stock takes {ratio.median:.2f} times our time (10-90 %: {ratio.low:.2f}-{ratio.high:.2f}, paired round by "
        f"round).\nMB: {method}."
    )
