"""A run of the reproduction: killed it goes on to the same weights, and what it trains and what it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from transformers.models.siglip import modeling_siglip

from examples.reproduction import cost, model, records, rows, run, training
from examples.reproduction.task import Sample
from examples.reproduction.tasks import find_task
from python_tests.examples._runs import RECIPE, prepare, run_row, unmeasured
from vr_kernels.models.training.checkpoints import checkpoints

DIGITS = find_task("digits")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("encoder"), "digits")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    unmeasured(monkeypatch)
    return tmp_path


def weights(work: Path, name: str, row: str = "local") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(work / name / f"digits-{row}-0" / "model" / "model.safetensors")


class Killed(BaseException):
    pass


def test_a_run_that_is_killed_goes_on_to_the_same_weights(
    work: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_record = run_row(work, tower, name="whole")
    on_step_end = training.LearningCurve.on_step_end

    def kill(self: Any, arguments: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == 3:
            raise Killed
        on_step_end(self, arguments, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training.LearningCurve, "on_step_end", kill)
        with pytest.raises(Killed):
            run_row(work, tower, name="killed")
    folder = work / "killed" / "digits-local-0"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    (folder / ".staging" / "checkpoint-3").mkdir(parents=True)  # what a kill within a write leaves
    record = run_row(work, tower, name="killed")
    whole, resumed = weights(work, "whole"), weights(work, "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert record["curve"] == whole_record["curve"]


def test_a_run_that_is_killed_while_it_answers_is_not_trained_again(
    work: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: Any) -> float:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "generated_accuracy", kill)
        with pytest.raises(Killed):
            run_row(work, tower)
    trained: list[int] = []
    monkeypatch.setattr(training.RowTrainer, "training_step", lambda *_, **__: trained.append(1))
    assert [point["step"] for point in run_row(work, tower)["curve"]] == [2, 4]
    assert not trained


@pytest.mark.parametrize("row", ["full", "control", "pool-2"])
def test_kept_features_are_the_encoder_s_bit_for_bit(
    row: str, work: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_row(work, tower, row, name="plain")
    run_row(work, tower, "pool", name="kept", keep_features=True)
    blocks: list[int] = []
    forward = modeling_siglip.SiglipEncoderLayer.forward

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        blocks.append(len(list((work / "kept" / "features").rglob("*.pt"))))
        return forward(*arguments, **options)

    monkeypatch.setattr(modeling_siglip.SiglipEncoderLayer, "forward", noted)
    kept = run_row(work, tower, row, name="kept", keep_features=True)
    # 4 batches of the training and 2 of the curve are there; only the tests' images, one batch a part, are not.
    assert blocks == [6] * 12
    assert kept["curve"] == plain["curve"]
    whole, other = weights(work, "plain", row), weights(work, "kept", row)
    assert all(torch.equal(whole[name], other[name]) for name in whole)


@pytest.mark.parametrize("row", ["saliency", "stf"])
def test_a_model_that_reads_more_of_the_encoder_does_without_kept_features(row: str, work: Path, tower: Path) -> None:
    run_row(work, tower, row, keep_features=True)
    assert not (work / "work" / "features").exists()


def test_a_run_does_not_go_on_under_other_settings(work: Path, tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_row(work, tower)
    monkeypatch.setitem(rows.ROWS, "local", rows.ROWS["local"]._replace(features="zeros"))
    with pytest.raises(ValueError, match="holds a run with features features, not zeros; delete it"):
        run_row(work, tower)


def test_checkpoints_that_nobody_can_tell_of_are_refused(work: Path, tower: Path) -> None:
    folder = work / "work" / "digits-local-0"
    (folder / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds checkpoints and no settings\.json; delete it"):
        run_row(work, tower)


def test_a_run_that_another_process_has_is_left_to_it(work: Path, tower: Path) -> None:
    with run._claimed(work / "work" / "digits-local-0"), pytest.raises(run.Busy, match="another process's run"):
        run_row(work, tower)
    record = run_row(work, tower)
    assert record["code"] == record["begun_with_code"] == records.code_version()


def test_training_changes_blocks_and_decoder_and_leaves_the_encoder(work: Path, tower: Path) -> None:
    record = run_row(work, tower)
    before, after = model.build_model(DIGITS, rows.ROWS["local"], 0, tower).state_dict(), weights(work, "work")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("vision_remember" in name for name in changed)
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert record["cost"]["trained_parameters"] < record["cost"]["parameters"]
    assert records.read_record(records.record_path("digits", "local", 0, work / "records")) == record


def test_rows_of_a_seed_see_the_same_samples_in_the_same_order(
    work: Path, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []
    draw = type(DIGITS).draw

    def noted(task: Any, number: int, seed: int, part: str) -> Sample:
        drawn.append((seed, number))
        return draw(task, number, seed, part)

    monkeypatch.setattr(type(DIGITS), "draw", noted)
    for row in ("pool", "full"):
        drawn.clear()
        run_row(work, tower, row)
        assert [number for seed, number in drawn if seed == 0][: RECIPE.steps * RECIPE.batch] == list(range(8))


def test_a_trained_model_is_loaded_and_pruned(work: Path, tower: Path) -> None:
    with pytest.raises(ValueError, match=r"fastv prunes the trained mlp of seed 0, and .*; train that first, with"):
        run_row(work, tower, "fastv")
    trained = run_row(work, tower, "mlp")
    record = run_row(work, tower, "fastv")
    assert record["curve"] == []
    assert record["cost"]["prefill_flops"] < trained["cost"]["prefill_flops"]
    assert record["pruning"]["method"] == "fastv"
    path = work / "work" / "digits-mlp-0" / "settings.json"
    records.write_json(path, records.read_record(path) | {"encoder_sha256": "another"})
    with pytest.raises(ValueError, match=r"fastv prunes a mlp with encoder_sha256 .*, and that in .* has another"):
        run_row(work, tower, "fastv")


@pytest.mark.parametrize("row", ["deepstack", "control"])
def test_a_trained_model_is_loaded_as_it_was(row: str, work: Path, tower: Path) -> None:
    run_row(work, tower, row)
    folder = work / "work" / f"digits-{row}-0" / "model"
    loaded, saved = model.load_model(DIGITS, rows.ROWS[row], folder), weights(work, "work", row)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert set(cost.prefill_call("digits", row, str(folder), "cpu")) == {"prefill"}


def test_the_command_sets_the_number_of_threads_before_torch_reads_it() -> None:
    code = "import sys, examples.reproduction.__main__; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_no_run_can_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row is 'near'; it must be one of pool, local"):
        run.run("digits", "near", 0, work=tmp_path)
    with pytest.raises(ValueError, match="seed is 2000"):
        run.run("digits", "local", 2000, work=tmp_path)
    with pytest.raises(ValueError, match="task is 'chess'; it must be one of digits, charts"):
        run.run("chess", "local", 0, work=tmp_path)
