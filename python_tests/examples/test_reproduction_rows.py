"""What the rows of the reproduction's tables are: each a model that can be trained, with what it may see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from examples.reproduction import blocks, cost, encoder, model, pruning, records, rows, training
from examples.reproduction.task import Task
from examples.reproduction.tasks import TASKS, find_task
from python_tests.examples._runs import prepare

DIGITS = find_task("digits")


def batch_of(task: Task, image_tokens: int) -> dict[str, torch.Tensor]:
    return training.collate([training.encode(task, task.draw(0, 0, "seen"), image_tokens)])


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_what_the_processor_makes_of_image_and_question(task: str) -> None:
    from PIL import Image

    found = find_task(task)
    sample = found.draw(7, 5, "seen")
    processor = model.build_processor(found, model.row_config(found, rows.ROWS["local"]))
    made = processor(images=Image.fromarray(sample.image), text=model.question(sample, 1), return_tensors="pt")
    encoded = training.encode(found, sample, image_tokens=16)
    prompt = encoded["input_ids"][encoded["labels"] == training.IGNORED]
    torch.testing.assert_close(made["input_ids"][0], prompt)
    torch.testing.assert_close(made["pixel_values"][0], encoded["pixel_values"])
    answer = encoded["labels"][encoded["labels"] != training.IGNORED]
    assert tuple(processor.decode(answer, skip_special_tokens=True).split()) == sample.answer


TRAINED = [name for name, row in rows.ROWS.items() if row.pruning is None]
PRUNED = [name for name, row in rows.ROWS.items() if row.pruning is not None]


@pytest.mark.parametrize("row", TRAINED)
def test_each_row_of_the_tables_is_a_model_that_can_be_trained(row: str) -> None:
    built = model.build_model(DIGITS, rows.ROWS[row], 0, None).train()
    image_tokens = math.prod(built.config.token_grid)
    assert image_tokens == (144 if row == "mlp" else (12 // built.config.vr_window[0]) ** 2)
    assert cost.image_tokens(DIGITS, rows.ROWS[row]) == [image_tokens] * 8
    built(**batch_of(DIGITS, image_tokens)).loss.backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad is not None) == ("vision_tower" not in name), name
    assert sum(cost.prefill_flops(DIGITS, rows.ROWS[row], built).values()) > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_of_every_task_can_be_trained(task: str) -> None:
    found = find_task(task)
    for row in {line.row for line in rows.TABLES["effect"].lines}:
        built = model.build_model(found, rows.ROWS[row], 0, None).train()
        assert built(**batch_of(found, math.prod(built.config.token_grid))).loss.isfinite()


@pytest.mark.parametrize("row", PRUNED)
def test_a_pruned_model_has_as_many_tokens_in_each_layer_as_the_table_says(row: str) -> None:
    unpruned = model.build_model(DIGITS, rows.ROWS[rows.BASE], 0, None).eval()
    of_row = rows.ROWS[row]
    pruned = pruning.prune(unpruned, of_row.pruning)
    tokens = cost.image_tokens(DIGITS, of_row)
    batch = batch_of(DIGITS, tokens[0])
    batch.pop("labels")
    with torch.no_grad():
        cache = pruned(**batch).past_key_values
    text = batch["input_ids"].shape[1] - tokens[0]
    assert [cache.get_seq_length(layer) - text for layer in range(8)] == tokens
    assert tokens[-1] in (16, 18)


def test_what_is_pruned_is_the_same_function_as_the_trained_model() -> None:
    unpruned = model.build_model(DIGITS, rows.ROWS[rows.BASE], 0, None).eval()
    batch = batch_of(DIGITS, 144)
    batch.pop("labels")
    kept = pruning.prune(unpruned, rows.Pruning("fastv", {"layer": 2, "keep_ratio": 1.0}))
    with torch.no_grad():
        torch.testing.assert_close(kept(**batch).logits, unpruned(**batch).logits)


@pytest.mark.parametrize("row", ["deepstack", "sva"])
def test_the_blocks_of_another_method_stand_in_the_place_of_ours(row: str) -> None:
    built = model.build_model(DIGITS, rows.ROWS[row], 0, None)
    kinds = [type(m).__name__ for m in built.modules()]
    assert "VisionRemember" not in kinds
    if row == "deepstack":
        assert [m.level for m in built.modules() if type(m).__name__ == "DeepStack"] == [0, 1, 2]
    else:
        assert kinds.count("SpatialVisionAggregator") == 2


def test_the_places_of_an_encoder_start_with_what_says_which_patches_share_a_cell() -> None:
    places = encoder.places(64, 6).view(12, 12, 64)
    assert int(torch.linalg.matrix_rank(places.view(144, 64))) == 12
    torch.testing.assert_close(places[0, 1] - places[0, 0], places[7, 5] - places[7, 4])  # the place in the cell
    of_cell = places[::2, ::2].flatten(0, 1)  # (36, 64), the same place in each cell
    nearest = (of_cell[:, None] - of_cell).norm(dim=-1).fill_diagonal_(torch.inf).min()
    assert nearest > (places[0, 0] - places[0, 1]).norm()
    assert int(torch.linalg.matrix_rank(encoder.places(64, 12))) == 22


@pytest.mark.parametrize("task", ["charts", "text"])
def test_an_encoder_is_written_with_its_record(task: str, tmp_path: Path) -> None:
    from transformers import SiglipVisionModel

    found = find_task(task)
    prepare(tmp_path, task)
    record = records.read_record(tmp_path / "record.json")
    assert {part: set(of_part) for part, of_part in record["accuracy_by_label"].items()} == {
        "seen": set(found.labels),
        "unseen": set(found.labels),
    }
    loaded = SiglipVisionModel.from_pretrained(tmp_path)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == record["parameters"]
    assert (tmp_path / "model.safetensors").stat().st_size < 1_000_000


def test_every_line_of_a_table_names_rows_and_every_table_belongs_to_a_task() -> None:
    lines = [line for table in rows.TABLES.values() for line in table.lines]
    assert {line.row for line in lines} == set(rows.ROWS)
    assert {line.over for line in lines} <= {None, *rows.ROWS}
    assert {name for task in TASKS.values() for name in task.tables} == set(rows.TABLES)


def test_what_is_pruned_is_trained_first() -> None:
    order = rows.runs(("methods",))
    assert order.index((rows.BASE, 1)) < order.index(("fastv", 1))
    assert len(set(order)) == len(order)


def test_the_control_rows_do_not_see_what_they_must_not() -> None:
    """Two images whose windows have equal means are told apart by local attention alone."""
    level = torch.randn(1, 12, 12, 5, generator=torch.Generator().manual_seed(0))
    turned = level.unflatten(1, (4, 3)).flip(2).flatten(1, 2)  # each window upside down
    assert not torch.equal(level, turned)
    torch.testing.assert_close(blocks.window_means(level), blocks.window_means(turned))
    torch.testing.assert_close(blocks.window_means(level)[0, 4, 7], level[0, 3:6, 6:9].mean((0, 1)))


@pytest.mark.parametrize("row", ["control", "means"])
def test_the_blocks_of_a_control_row_get_what_stands_in_place_of_the_features(row: str) -> None:
    built = model.build_model(DIGITS, rows.ROWS[row], 0, None).eval()
    got: list[Any] = []
    block = next(m for m in built.modules() if type(m).__name__ == "VisionRemember")
    block.register_forward_pre_hook(lambda _, arguments: got.append(arguments[2]))
    with torch.no_grad():
        built(**batch_of(DIGITS, 16))
    window = got[0][-1][0, :3, :3]
    assert torch.equal(window, window[:1, :1].expand_as(window))
    assert bool(window.any()) == (row == "means")
