"""The reproduction in small: its data, a run that is killed and goes on, and tables that come of records alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from examples.reproduction import cost, digits, encoder, model, records, rows, run, training

RECIPE = training.Recipe(steps=4, batch=2, warmup_steps=1, save_steps=2, curve_steps=2, curve_images=3)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    encoder.train_encoder(folder, steps=2, test_images=2)
    return folder


@pytest.fixture
def work(tmp_path: Path, tower: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an encoder of two steps, and without the process that memory is measured in."""
    (tmp_path / "encoder").symlink_to(tower)

    def unmeasured(*arguments: Any) -> dict[str, int]:
        raise cost.Unknown("not here")

    monkeypatch.setattr(cost, "peak_memory", unmeasured)
    monkeypatch.setattr(cost, "REPEATS", 2)
    return tmp_path


def run_row(work: Path, row: str = "local", name: str = "work") -> dict[str, Any]:
    return run.run(
        "digits",
        row,
        0,
        recipe=RECIPE,
        records=work / "records",
        work=work / name,
        encoder=work / "encoder",
        test_images=3,
    )


def weights(work: Path, name: str, row: str = "local") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(work / name / f"digits-{row}-0" / "model" / "model.safetensors")


def test_no_digit_image_is_on_both_sides_of_the_split() -> None:
    seen, unseen = digits.load_split("seen"), digits.load_split("unseen")
    assert not set(seen.instances) & set(unseen.instances)
    assert len(seen.instances) + len(unseen.instances) == 1797
    assert set(unseen.labels) == set(range(10))


@pytest.mark.parametrize("part", ["seen", "unseen"])
def test_the_pixels_of_a_grid_are_those_of_the_digits_it_is_labelled_with(part: str) -> None:
    from sklearn.datasets import load_digits

    data, grid = load_digits(), digits.draw_grid(digits.load_split(part), 5, 7)
    assert set(grid.instances.flat) <= set(digits.load_split(part).instances)
    for (row, column), instance in np.ndenumerate(grid.instances):
        cell = grid.image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(cell, np.rint(data.images[instance] * 255 / 16))
        assert grid.labels[row, column] == data.target[instance]


def test_a_grid_is_drawn_again_from_its_numbers_alone() -> None:
    seen = digits.load_split("seen")
    again, other = digits.draw_grid(seen, 5, 7), digits.draw_grid(seen, 5, 8)
    np.testing.assert_array_equal(digits.draw_grid(seen, 5, 7).image, again.image)
    assert not np.array_equal(other.image, again.image)


def test_a_sample_is_what_the_processor_makes_of_image_and_question() -> None:
    from PIL import Image

    grid = digits.draw_grid(digits.load_split("seen"), 5, 7)
    processor = model.build_processor(model.row_config(rows.ROWS["local"]))
    made = processor(
        images=Image.fromarray(grid.image).convert("RGB"), text=training.question(grid, 1), return_tensors="pt"
    )
    sample = training.encode(grid, image_tokens=16)
    prompt = sample["input_ids"][sample["labels"] == training.IGNORED]
    torch.testing.assert_close(made["input_ids"][0], prompt)
    torch.testing.assert_close(made["pixel_values"][0], sample["pixel_values"])
    answer = sample["labels"][sample["labels"] != training.IGNORED]
    assert processor.decode(answer, skip_special_tokens=True).split() == [str(d) for d in grid.labels[grid.row]]


@pytest.mark.parametrize("row", rows.ROWS)
def test_each_row_of_the_tables_is_a_model_that_can_be_trained(row: str) -> None:
    built = model.build_model(rows.ROWS[row], 0, None).train()
    config = built.config
    image_tokens = math.prod(config.token_grid)
    assert image_tokens == (144 if row == "mlp" else (12 // config.vr_window[0]) ** 2)
    batch = training.collate([training.encode(digits.draw_grid(digits.load_split("seen"), 0, 0), image_tokens)])
    built(**batch).loss.backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad is not None) == ("vision_tower" not in name), name


def test_the_places_of_the_encoder_start_with_what_says_which_patches_share_a_digit() -> None:
    places = encoder._places(64).view(12, 12, 64)
    assert int(torch.linalg.matrix_rank(places.view(144, 64))) == 12
    torch.testing.assert_close(places[0, 1] - places[0, 0], places[7, 5] - places[7, 4])  # the place in the digit
    of_digit = places[::2, ::2].flatten(0, 1)  # (36, 64), the same place in each digit
    nearest = (of_digit[:, None] - of_digit).norm(dim=-1).fill_diagonal_(torch.inf).min()
    assert nearest > (places[0, 0] - places[0, 1]).norm()


def test_the_encoder_is_trained_on_digits_that_are_each_varied_a_little() -> None:
    digit = np.zeros((2, 100, 8, 8), dtype=np.uint8)
    digit[..., 2:6, 2:6] = 200
    varied = encoder._varied(digit, np.random.default_rng(0))
    assert len(np.unique(varied.reshape(200, 64), axis=0)) == 200
    np.testing.assert_allclose(varied.mean((0, 1)), digit[0, 0], atol=80)
    np.testing.assert_allclose(varied.sum((-2, -1)), 16 * 200, rtol=0.45)


def test_the_encoder_is_written_with_its_record(tower: Path) -> None:
    from transformers import SiglipVisionModel

    record = records.read_record(tower / "record.json")
    assert set(record["patch_accuracy"]) == {"seen", "unseen"}
    loaded = SiglipVisionModel.from_pretrained(tower)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == record["parameters"]


def test_every_line_of_a_table_names_rows() -> None:
    lines = [line for table in rows.TABLES.values() for line in table.lines]
    assert {line.row for line in lines} == set(rows.ROWS)
    assert {line.over for line in lines} <= {None, *rows.ROWS}


def test_the_control_rows_do_not_see_what_they_must_not() -> None:
    """Two images whose windows have equal means are told apart by local attention alone."""
    level = torch.randn(1, 12, 12, 5, generator=torch.Generator().manual_seed(0))
    turned = level.unflatten(1, (4, 3)).flip(2).flatten(1, 2)  # each window upside down
    assert not torch.equal(level, turned)
    torch.testing.assert_close(model._window_means(level), model._window_means(turned))
    torch.testing.assert_close(model._window_means(level)[0, 4, 7], level[0, 3:6, 6:9].mean((0, 1)))


@pytest.mark.parametrize("row", ["control", "means"])
def test_the_blocks_of_a_control_row_get_what_stands_in_place_of_the_features(row: str) -> None:
    built = model.build_model(rows.ROWS[row], 0, None).eval()
    got: list[Any] = []
    block = next(m for m in built.modules() if type(m).__name__ == "VisionRemember")
    block.register_forward_pre_hook(lambda _, arguments: got.append(arguments[2]))
    batch = training.collate([training.encode(digits.draw_grid(digits.load_split("seen"), 0, 0), 16)])
    with torch.no_grad():
        built(**batch)
    window = got[0][-1][0, :3, :3]
    assert torch.equal(window, window[:1, :1].expand_as(window))
    assert bool(window.any()) == (row == "means")


class Killed(BaseException):
    pass


def test_a_run_that_is_killed_goes_on_to_the_same_weights(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_record = run_row(work, name="whole")
    on_step_end = training.LearningCurve.on_step_end

    def kill(self: Any, arguments: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == 3:
            raise Killed
        on_step_end(self, arguments, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training.LearningCurve, "on_step_end", kill)
        with pytest.raises(Killed):
            run_row(work, name="killed")
    folder = work / "killed" / "digits-local-0"
    assert [path.name for path in training.checkpoints(folder)] == ["checkpoint-2"]
    (folder / ".staging" / "checkpoint-3").mkdir(parents=True)  # what a kill within a write leaves
    record = run_row(work, name="killed")
    whole, resumed = weights(work, "whole"), weights(work, "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert record["curve"] == whole_record["curve"]


def test_a_run_that_is_killed_while_it_answers_is_not_trained_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: Any) -> float:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "generated_accuracy", kill)
        with pytest.raises(Killed):
            run_row(work)
    trained: list[int] = []
    monkeypatch.setattr(training.ResumableTrainer, "training_step", lambda *_, **__: trained.append(1))
    assert [point["step"] for point in run_row(work)["curve"]] == [2, 4]
    assert not trained


def test_a_run_does_not_go_on_under_other_settings(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_row(work)
    monkeypatch.setitem(rows.ROWS, "local", rows.ROWS["local"]._replace(features="zeros"))
    with pytest.raises(ValueError, match="holds a run with features features, not zeros; delete it"):
        run_row(work)


def test_training_changes_blocks_and_decoder_and_leaves_the_encoder(work: Path) -> None:
    record = run_row(work)
    before, after = model.build_model(rows.ROWS["local"], 0, work / "encoder").state_dict(), weights(work, "work")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("vision_remember" in name for name in changed)
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert record["cost"]["trained_parameters"] < record["cost"]["parameters"]
    assert records.read_record(records.record_path("digits", "local", 0, work / "records")) == record


def test_rows_of_a_seed_see_the_same_grids_in_the_same_order(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def draw_grid(part: Any, seed: int, number: int) -> digits.Grid:
        drawn.append((seed, number))
        return digits.draw_grid(part, seed, number)

    monkeypatch.setattr(training, "draw_grid", draw_grid)
    for row in ("pool", "full"):
        drawn.clear()
        run_row(work, row)
        assert [number for seed, number in drawn if seed == 0] == list(range(8))


def test_what_no_run_can_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row is 'near'; it must be one of pool, local"):
        run.run("digits", "near", 0, work=tmp_path)
    with pytest.raises(ValueError, match="seed is 2000"):
        run.run("digits", "local", 2000, work=tmp_path)
    with pytest.raises(ValueError, match="task is 'chess'; it must be 'digits'"):
        run.run("chess", "local", 0, work=tmp_path)


def test_arithmetic_is_that_of_the_formulas() -> None:
    flops = {row: cost.prefill_flops(model.build_model(rows.ROWS[row], 0, None)) for row in ("pool", "local", "global")}
    d, inner, layers, length, vocabulary = 128, 256, 8, 19, len(model.WORDS)
    matrices = 2 * d * d + 2 * d * 64 + 3 * d * inner  # q and o, k and v of half the heads, gate, up and down
    assert flops["pool"]["language_model"] == layers * (2 * length * matrices + 4 * length**2 * d)
    assert flops["pool"]["lm_head"] == 2 * vocabulary * d
    assert flops["pool"]["vision_remember"] == 0
    c = 64  # one level
    assert flops["local"]["vision_remember"] == 2 * (2 * 16 * (2 * d * c + 4 * c * c) + 4 * 16 * 4 * 9 * c)
    assert flops["local"]["vision_tower"] == flops["pool"]["vision_tower"]
    assert flops["global"]["vision_remember"] > 3 * flops["local"]["vision_remember"]
