"""The first act: a model that pools its image features, and its twin that reads them again, asked the same."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from matplotlib.figure import SubFigure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vr_kernels.cli.demonstration import answers, answers_figure
from vr_kernels.cli.demonstration.answers import POOLED, REMEMBERING, Question
from vr_kernels.cli.measure.memory import METHODS, Unknown, peak_memory
from vr_kernels.cli.measure.report import figures, megabytes
from vr_kernels.cli.measure.timing import Spread, paired_seconds, ratios
from vr_kernels.cli.progress import progress
from vr_kernels.models.inference import Assistant

TITLES = {POOLED: "pooled", REMEMBERING: "Vision Remember"}


def show(console: Console, folder: Path, rounds: int, figure: SubFigure) -> None:
    """Answers beside the truth, then what they cost; draws the first image and what was looked at.

    Exits with code 1 if the folder does not hold the models.
    """
    try:
        assistants, questions = answers.load_models(folder), answers.read_questions(folder)
    except (OSError, ValueError) as reason:
        console.print(
            f"vr-kernels demo: {reason}\nThe trained models stand in docs/results/models of the repository; --models "
            "names another folder of the same kind.",
            markup=False,
        )
        raise typer.Exit(1) from None
    given = {
        name: [answers.answer(assistant, question) for question in questions] for name, assistant in assistants.items()
    }
    _print_answers(console, folder, questions, given)
    _print_costs(console, folder, assistants, questions[0], rounds)
    first = {TITLES[name]: texts[0] for name, texts in given.items()}
    answers_figure.draw(figure, questions[0], answers.look(assistants[REMEMBERING], questions[0]), first)


def _print_answers(console: Console, folder: Path, questions: list[Question], given: dict[str, list[str]]) -> None:
    table = Table("image and question", "truth", *(TITLES[name] for name in given), box=SIMPLE_HEAD)
    for number, question in enumerate(questions):
        cells = [marked(texts[number], question.answer) for texts in given.values()]
        table.add_row(f"{question.image.name}, {question.prompt}", question.answer, *cells)
    digits = sum(len(question.answer.split()) for question in questions)
    right = {
        name: sum(answers.digits_right(text, question.answer) for text, question in zip(texts, questions, strict=True))
        for name, texts in given.items()
    }
    table.add_row("digits that are right", f"of {digits}", *(str(count) for count in right.values()))
    console.print(
        f"Two LLaVA-VR models of {folder}, which differ in Vision Remember alone, read handwritten digits\n"
        "that neither was trained on: 6x6 digits an image, of which the model gets 16 tokens."
    )
    console.print(table)
    for name in given:
        record = json.loads((folder / name / "record.json").read_text())
        accuracy = record["accuracy"]["unseen"]
        console.print(f"{TITLES[name]}: {accuracy:.1%} of the digits of {record['test_images']} such images.")


def marked(text: str, truth: str) -> str:
    """An answer in rich's markup, with its wrong digits in red."""
    true = truth.split()
    digits = [
        digit if place < len(true) and digit == true[place] else f"[red]{digit}[/red]"
        for place, digit in enumerate(text.split())
    ]
    return " ".join(digits)


def _print_costs(
    console: Console, folder: Path, assistants: dict[str, Assistant], question: Question, rounds: int
) -> None:
    runs = {name: answers.first_token(assistant, question) for name, assistant in assistants.items()}
    memory: dict[str, int] = {}
    method = METHODS["cpu"]
    with progress("time to the first token, and memory") as tell:
        seconds = paired_seconds(runs, "cpu", rounds, lambda done: tell(f"round {done}"))
        try:
            for name in runs:
                arguments = {"folder": str(folder), "name": name}
                memory |= peak_memory(f"{answers.__name__}:memory_calls", arguments, "cpu")
        except Unknown as reason:
            method = f"not measured ({reason})"
    table = Table("float32, CPU", "ms to the first token", "10-90 %", "MB", "MB of weights", box=SIMPLE_HEAD)
    for name, taken in seconds.items():
        low, median, high = (figures(value * 1e3) for value in Spread.of(taken))
        weights = sum(p.numel() * p.element_size() for p in assistants[name].model.parameters())
        table.add_row(TITLES[name], median, f"{low}-{high}", megabytes(memory.get(name)), megabytes(weights))
    console.print(table)
    ratio = Spread.of(ratios(seconds[REMEMBERING], seconds[POOLED]))
    console.print(
        f"Vision Remember takes {ratio.median:.2f} times the pooled model's time (10-90 %: {ratio.low:.2f}-"
        f"{ratio.high:.2f}, paired round by round).\nMB: {method}.\n"
    )
