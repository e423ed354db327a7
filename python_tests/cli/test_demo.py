"""``vr-kernels demo`` on a small encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result as Invoked
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.demonstration import answers, features, operators, photograph_figure, reading, resampler


def demo(picture: Path, *options: str) -> Invoked:
    return CliRunner().invoke(commands, ["demo", "--quick", "--output", str(picture), *options])


def test_it_reads_images_shows_that_the_outputs_agree_and_draws_both(tmp_path: Path) -> None:
    result = demo(tmp_path / "picture.png")
    assert result.exit_code == 0, result.output
    tasks = answers.tasks(answers.MODELS)
    assert tasks == ["digits", "charts"]
    for question in (one for task in tasks for one in answers.read_questions(answers.MODELS, task).every):
        assert f"{question.image.name}, {question.prompt}" in result.stdout
        assert question.answer in result.stdout
    assert "times the pooled model's time" in result.stdout
    assert "the outputs agree" in result.stdout
    assert "times our time" in result.stdout
    assert "random weights" in result.stdout
    assert str(tmp_path / "picture.png") in result.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_the_models_ends_it_in_words(tmp_path: Path) -> None:
    result = demo(tmp_path / "picture.png", "--models", str(tmp_path))
    assert result.exit_code == 1
    assert f"vr-kernels demo: {tmp_path} holds no trained models" in result.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_digits_are_marked() -> None:
    assert reading.marked("1 2 3 4", "1 5 3") == "1 [red]2[/red] 3 [red]4[/red]"
    assert answers.words_right("1 2 3 4", "1 5 3") == 2
    assert answers.words_right("", "1 5 3") == 0


@pytest.mark.parametrize("task", answers.tasks(answers.MODELS))
def test_the_shipped_models_answer_as_their_records_say(task: str) -> None:
    """On images of no training; a record tells of a thousand of them, these are a few."""
    questions, said = answers.read_questions(answers.MODELS, task).every, {}
    for kind, assistant in answers.load_models(answers.MODELS, task).items():
        words = [answers.words_right(answers.answer(assistant, one), one.answer) for one in questions]
        right = sum(words) / sum(len(one.answer.split()) for one in questions)
        record = json.loads((answers.model_folder(answers.MODELS, task, kind) / "record.json").read_text())
        said[kind] = record["accuracy"]["unseen"]
        assert abs(right - said[kind]) < 0.25
    assert said[answers.REMEMBERING] > said[answers.POOLED]


def test_outputs_that_disagree_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    make = resampler.make_resamplers

    def unequal(widths: Sequence[int], heads: int) -> tuple[nn.Module, nn.Module]:
        stock, ours = make(widths, heads)
        with torch.no_grad():
            ours.value_weight *= 1.001
        return stock, ours

    monkeypatch.setattr(resampler, "make_resamplers", unequal)
    console = Console(record=True, width=200)
    with pytest.raises(typer.Exit) as end:  # before the picture is written
        operators.show(console, features.QUICK, 3, Figure().subfigures(1, 1))
    assert end.value.exit_code == 1
    assert "THE OUTPUTS DISAGREE" in console.export_text()


def test_the_tiles_are_the_whole_photograph_and_its_quarters() -> None:
    photograph = features.photograph()
    whole, top_left, top_right, bottom_left, _ = features.tiles_of(photograph, 5)
    assert whole.shape == (3, 384, 384)
    top = torch.cat([top_left, top_right], -1)
    half = 2 * features.resized(photograph, 768)[:, :384] - 1
    torch.testing.assert_close(top, half)
    assert not torch.equal(top_left, bottom_left)


def test_attention_lands_on_the_feature_it_belongs_to() -> None:
    weights = torch.zeros(2, 3, 4, 9)  # (n_h, n_w, h, K)
    weights[1, 2, :, 5] = 1.0  # window (1, 2), slot 5: its row 1, column 2
    drawn = photograph_figure.over_grid(weights)
    assert drawn.shape == (6, 9)
    assert drawn[3 + 1, 6 + 2] == 1.0
    assert drawn.sum() == 1.0


def test_kept_patches_are_clear_and_merged_ones_have_their_token_s_colour() -> None:
    drawn = photograph_figure.merged_over(torch.tensor([[0, 1, 2], [3, 2, 0]]), dominant=2)
    assert (drawn[..., 3] == [[0, 0, 0.7], [0.7, 0.7, 0]]).all()
    assert (drawn[0, 2] == drawn[1, 1]).all()
    assert (drawn[0, 2] != drawn[1, 0]).any()
