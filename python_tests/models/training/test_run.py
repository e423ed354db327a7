"""A run in one process: what it changes, what it leaves behind, and how it goes on after it was killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2Model

from python_tests.models.training import _processes, _tiny
from python_tests.models.training.test_phases import NAMES
from vr_kernels.models.training import BadSampleError, TrainConfig, TrainResult, train
from vr_kernels.models.training.run import _load_config, _load_processor
from vr_kernels.models.training.trainer import VisionLanguageTrainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the processes have that are compared with, bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _tiny.save_model(tmp_path / "start")
    _tiny.save_data(tmp_path)
    return tmp_path


def run(folder: Path, *, resume: bool = False, **changes: Any) -> TrainResult:
    return train(TrainConfig.from_dict(_tiny.settings(folder, **changes)), resume=resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config(folder: Path) -> dict[str, Any]:
    """What it says of the model; from_pretrained notes the type that it was loaded in."""
    found = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in found.items() if name not in ("dtype", "text_config", "vision_config")}


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def log(folder: Path) -> list[dict[str, Any]]:
    return [line for line in json.loads((folder / "log.json").read_text()) if "loss" in line]


@pytest.mark.parametrize(("phase", "moved"), [(1, {"projector"}), (2, {"projector", "language_model"})])
def test_a_phase_moves_its_modules_and_no_others(phase: int, moved: set[str], folder: Path) -> None:
    result = run(folder, phase=phase)
    before, after = weights(folder / "start"), weights(result.model)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    groups = {next(group for group, names in NAMES.items() if re.search(names, name)) for name in changed}
    assert groups == moved | {"vision_remember"}
    assert result.steps == 4
    assert config(result.model) == config(folder / "start")
    losses = [line["loss"] for line in log(folder / "out")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_a_group_has_its_own_learning_rate(folder: Path) -> None:
    result = run(folder, phase=1, learning_rates={"vision_remember": 1e-9}, max_steps=2)
    before, after = weights(folder / "start"), weights(result.model)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert max(moved[name] for name in moved if "multi_modal_projector" in name) > 1e-3
    assert 0 < max(moved[name] for name in moved if "vision_remember" in name) < 1e-6
    assert log(folder / "out")[1]["learning_rate"] == 1e-2  # the log has that of the other groups


def test_weight_decay_acts_on_matrices_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, create = [], VisionLanguageTrainer.create_optimizer

    def observed(self: VisionLanguageTrainer, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        made.append(create(self, model))
        return made[-1]

    monkeypatch.setattr(VisionLanguageTrainer, "create_optimizer", observed)
    run(folder, weight_decay=0.1, max_steps=1)
    decays = [(entry["weight_decay"], p.dim()) for entry in made[0].param_groups for p in entry["params"]]
    assert {(decay, dim > 1) for decay, dim in decays} == {(0.1, True), (0.0, False)}


def test_a_learning_rate_of_what_is_frozen_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="learning_rates names language_model, of which this phase trains nothing"):
        run(folder, phase=1, learning_rates={"language_model": 1e-5})


def test_checkpointed_gradients_and_small_batches_give_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forward = [], Qwen2MLP.forward

    def counted(self: Any, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(hidden_states))
        return forward(self, hidden_states, *arguments, **options)

    monkeypatch.setattr(Qwen2MLP, "forward", counted)
    run(folder, output_dir=str(folder / "plain"), batch_size_per_device=4)
    assert calls == [4] * 4 * 4  # samples, layers, steps
    calls.clear()
    run(folder, output_dir=str(folder / "checkpointed"), batch_size_per_device=1, gradient_checkpointing=True)
    assert calls == [1] * 4 * 16 * 2  # every layer again in the backward pass
    plain, checkpointed = ([line["loss"] for line in log(folder / name)] for name in ("plain", "checkpointed"))
    assert checkpointed == pytest.approx(plain, rel=1e-4)


def test_bfloat16_computes_in_autocast_and_keeps_float32_weights(folder: Path) -> None:
    result = run(folder, precision="bf16", max_steps=2)
    assert {weight.dtype for weight in weights(result.model).values()} == {torch.float32}
    exact = run(folder, output_dir=str(folder / "exact"), max_steps=2)
    losses = [line["loss"] for line in log(folder / "out")], [line["loss"] for line in log(folder / "exact")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]
    assert exact.steps == 2


@pytest.mark.parametrize("stock", [False, True], ids=["llava_vr", "llava_next"])
def test_a_step_builds_no_cache_and_the_saved_config_says_nothing_of_it(
    stock: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, forward = [], Qwen2Model.forward

    def observed(self: Any, *arguments: Any, **options: Any) -> Any:
        output = forward(self, *arguments, **options)
        caches.append(output.past_key_values)
        return output

    monkeypatch.setattr(Qwen2Model, "forward", observed)
    start = _tiny.save_llava_next(folder / "next") if stock else folder / "start"
    result = run(folder, model=str(start), save_steps=1, max_steps=2)
    assert len(caches) == 2 * 4  # also after a checkpoint
    assert set(caches) == {None}
    for saved in (result.model, folder / "out" / "checkpoint-1"):
        assert config(saved) == config(start)


def test_a_run_leaves_its_newest_checkpoints_its_log_and_its_loss_curve(folder: Path) -> None:
    run(folder, save_steps=1, keep_checkpoints=2)
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"checkpoint-3", "checkpoint-4", "model", "log.json", "loss.png"}
    assert (folder / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [line["step"] for line in log(folder / "out")] == [1, 2, 3, 4]


def test_bad_samples_are_skipped_counted_and_named(folder: Path) -> None:
    (folder / "images" / "0-0.png").unlink()
    (folder / "images" / "3-0.png").write_text("no picture")
    with pytest.raises(BadSampleError, match=r"sample [03] .*image .*/[03]-0.png (is missing|cannot be read)"):
        run(folder)
    result = run(folder, on_bad_sample="skip")
    assert result.bad_samples == 2
    assert result.steps == 4
    assert log(folder / "out")[-1]["bad_samples"] == 2
    assert "3-0.png" in (folder / "out" / "bad_samples.jsonl").read_text()


def test_bad_samples_of_a_run_without_a_checkpoint_are_not_counted_by_the_next(folder: Path) -> None:
    left = folder / "out" / "bad_samples.jsonl"
    left.parent.mkdir()
    left.write_text('{"index": 7, "reason": "sample 7: its image is missing"}\n')
    assert run(folder, max_steps=1, save_steps=1, on_bad_sample="skip").bad_samples == 0
    assert not left.exists()
    left.write_text('{"index": 8, "reason": "sample 8: its image is missing"}\n')
    assert run(folder, resume=True, max_steps=2, on_bad_sample="skip").bad_samples == 1


def test_the_folder_of_another_run_is_not_written_over(folder: Path) -> None:
    run(folder, max_steps=1, save_steps=1)
    with pytest.raises(ValueError, match="holds another run; resume it, or name another folder"):
        run(folder)


def test_tiles_that_the_tower_cannot_make_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_grid_pinpoints is .* multiples of the tower's 24 pixels"):
        run(folder, image_grid_pinpoints=[[30, 60]])


def test_a_model_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(
        OSError, match=r"TrainConfig: model is '.*nowhere'; it must be a folder .* or the name of a model"
    ):
        run(folder, model=str(folder / "nowhere"))


def test_a_file_in_the_place_of_the_output_folder_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(ValueError, match=r"output_dir .*file is a file; it must be a folder"):
        run(folder, output_dir=str(folder / "file"))


def test_the_second_phase_starts_from_the_model_of_the_first(folder: Path) -> None:
    first = run(folder, phase=1, image_grid_pinpoints=[], chat_template="plain", max_steps=1)
    config = json.loads((first.model / "config.json").read_text())
    assert config["image_grid_pinpoints"] == []
    sizes = [[24, 48], [48, 24]]
    second = run(
        folder, model=str(first.model), output_dir=str(folder / "second"), image_grid_pinpoints=sizes, max_steps=1
    )
    assert json.loads((second.model / "config.json").read_text())["image_grid_pinpoints"] == sizes


def test_other_tiles_leave_the_pixels_and_the_image_token_as_the_model_has_them(folder: Path) -> None:
    own = _tiny.processor()
    own.image_processor.image_mean, own.image_processor.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    own.image_processor.resample = 2
    own.image_token = "<|im_start|>"
    own.save_pretrained(folder / "start")
    for sizes in ([], [[24, 48]]):
        changed = {"image_grid_pinpoints": sizes, "chat_template": "plain"}
        processor, _ = _load_processor(
            loaded := TrainConfig.from_dict(_tiny.settings(folder, **changed)), _load_config(loaded)
        )
        pixels = processor.image_processor
        assert (list(pixels.image_mean), list(pixels.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        assert pixels.resample == 2
        assert processor.image_token == "<|im_start|>"


@pytest.mark.parametrize("file", [True, False], ids=["generation_config", "config alone"])
def test_generation_ends_where_the_template_ends_a_turn(file: bool, folder: Path) -> None:
    start = folder / "start"
    text = json.loads((start / "config.json").read_text())["text_config"]
    rewrite(start / "config.json", text_config=text | {"eos_token_id": 2})
    rewrite(start / "tokenizer_config.json", eos_token="<|im_start|>")
    rewrite(start / "generation_config.json", eos_token_id=2)
    if not file:
        (start / "generation_config.json").unlink()
    first = run(folder, chat_template="chatml", max_steps=1).model
    second = run(folder, model=str(first), output_dir=str(folder / "second"), chat_template="chatml", max_steps=1).model
    for model in (first, second):
        assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == [2, 3]


def test_stock_llava_next_is_trained_as_the_baseline(folder: Path) -> None:
    _tiny.save_llava_next(folder / "next")
    assert run(folder, model=str(folder / "next"), max_steps=2).steps == 2
    with pytest.raises(ValueError, match="image_grid_pinpoints is for LLaVA-VR, and the model is llava_next"):
        run(folder, model=str(folder / "next"), output_dir=str(folder / "other"), image_grid_pinpoints=[])


# The second checkpoint has its model already, and its optimizer not yet.
def test_a_run_killed_while_it_saves_resumes_to_the_same_weights(folder: Path) -> None:
    settings = _tiny.settings(folder, save_steps=1, output_dir=str(folder / "killed"))
    ((code, output),) = _processes.train(
        settings, script=_processes.killed("checkpoint-2", "optimizer") + _processes.COMMAND
    )
    assert code == -signal.SIGKILL, output
    assert [path.name for path in (folder / "killed").glob("[!.]*") if path.is_dir()] == ["checkpoint-1"]

    resumed = train(TrainConfig.from_dict(settings), resume=True)
    whole = run(folder, save_steps=1)
    assert resumed.steps == whole.steps == 4
    expected, found = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [line["loss"] for line in log(folder / "killed")] == [line["loss"] for line in log(folder / "out")]
    assert not (folder / "killed" / ".staging").exists()


def test_the_trained_model_loads_in_a_process_that_knows_nothing_of_training(folder: Path) -> None:
    model = run(folder, max_steps=1).model
    script = f"""
import sys, torch
from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration, LlavaVRProcessor
from PIL import Image
model, report = LlavaVRForConditionalGeneration.from_pretrained({str(model)!r}, output_loading_info=True)
assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
processor = LlavaVRProcessor.from_pretrained({str(model)!r})
chat = [{{"role": "user", "content": "<image>\\nWhat?"}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.new("RGB", (40, 30))], return_tensors="pt")
said = model.generate(**inputs, max_new_tokens=2, do_sample=False)
assert said.shape[1] == inputs["input_ids"].shape[1] + 2
assert "vr_kernels.models.training" not in sys.modules
from safetensors.torch import load_file
saved = load_file({str(model / "model.safetensors")!r})
assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
