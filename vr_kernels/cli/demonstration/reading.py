"""The first act: a model that pools its image features, and its twin that reads them again, asked the same."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import SubFigure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vr_kernels.cli.demonstration import answers, answers_figure
from vr_kernels.cli.demonstration.answers import POOLED, REMEMBERING, Questions
from vr_kernels.cli.measure.memory import METHODS, Unknown, peak_memory
from vr_kernels.cli.measure.report import figures, megabytes
from vr_kernels.cli.measure.timing import Spread, paired_seconds, ratios
from vr_kernels.cli.progress import progress
from vr_kernels.models.inference import Assistant

TITLES = {POOLED: "pooled", REMEMBERING: "Vision Remember"}


def show(console: Console, folder: Path, task: str, rounds: int, figure: SubFigure) -> None:
    """Answers beside the truth, then what they cost; draws the first image and what was looked at.

    Raises:
        OSError, ValueError: the folder does not hold the models.
    """
    assistants, questions = answers.load_models(folder, task), answers.read_questions(folder, task)
    given = {
        kind: [answers.answer(assistant, question) for question in questions.every]
        for kind, assistant in assistants.items()
    }
    _print_introduction(console, task, questions, assistants[REMEMBERING])
    _print_answers(console, questions, given)
    for kind in given:
        record = json.loads((answers.model_folder(folder, task, kind) / "record.json").read_text())
        accuracy = record["accuracy"]["unseen"]
        console.print(
            f"{TITLES[kind]}: {accuracy:.1%} of the {questions.unit}s of {record['test_images']} such images."
        )
    _print_costs(console, folder, task, assistants, rounds)
    first = {
        f"{TITLES[kind]} (in all {total_right(questions, texts)} of {number_of_words(questions)})": texts[0]
        for kind, texts in given.items()
    }
    look = answers.look(assistants[REMEMBERING], questions.every[0])
    answers_figure.draw(figure, questions.every[0], look, first)


def _print_introduction(console: Console, task: str, questions: Questions, assistant: Assistant) -> None:
    config = assistant.model.config
    tokens, features = (n_h * n_w for n_h, n_w in (config.token_grid, config.feature_grid))
    console.print(
        f"{task.capitalize()}: two small LLaVA-VR models that differ in Vision Remember alone are asked for\n"
        f"{questions.asked}.\nNeither was trained on these images. Both get {tokens} tokens of one; one of them reads "
        f"the {features} features again."
    )


def _print_answers(console: Console, questions: Questions, given: dict[str, list[str]]) -> None:
    table = Table("image and question", "truth", *(TITLES[kind] for kind in given), box=SIMPLE_HEAD)
    for number, question in enumerate(questions.every):
        cells = [marked(texts[number], question.answer) for texts in given.values()]
        table.add_row(f"{question.image.name}, {question.prompt}", question.answer, *cells)
    right = [str(total_right(questions, texts)) for texts in given.values()]
    table.add_row(f"{questions.unit}s that are right", f"of {number_of_words(questions)}", *right)
    console.print(table)


def number_of_words(questions: Questions) -> int:
    return sum(len(question.answer.split()) for question in questions.every)


def total_right(questions: Questions, given: list[str]) -> int:
    return sum(answers.words_right(text, one.answer) for text, one in zip(given, questions.every, strict=True))


def marked(text: str, truth: str) -> str:
    """An answer in rich's markup, with its wrong words in red."""
    return " ".join(word if right else f"[red]{word}[/red]" for word, right in answers.judged(text, truth))


def _print_costs(console: Console, folder: Path, task: str, assistants: dict[str, Assistant], rounds: int) -> None:
    question = answers.read_questions(folder, task).every[0]
    runs = {kind: answers.first_token(assistant, question) for kind, assistant in assistants.items()}
    memory: dict[str, int] = {}
    method = METHODS["cpu"]
    with progress("time to the first token, and memory") as tell:
        seconds = paired_seconds(runs, "cpu", rounds, lambda done: tell(f"round {done}"))
        try:
            for kind in runs:
                arguments = {"folder": str(folder), "task": task, "kind": kind}
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
