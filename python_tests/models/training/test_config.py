"""The settings of a run are checked before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from python_tests.models.training import _tiny
from vr_kernels.models.training import TrainConfig
from vr_kernels.models.training.run import training_arguments

EXAMPLES = Path(__file__).parents[3] / "examples" / "train"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("phase", 3, "1 or 2"),
        ("phase", True, "1 or 2"),
        ("learning_rate", "fast", "a positive number"),
        ("learning_rate", float("nan"), "a positive number"),
        ("learning_rates", {"encoder": 1e-3}, "groups being vision_remember, vision_tower, projector, lang"),
        ("learning_rates", {"projector": 0}, "a positive number by group"),
        ("global_batch_size", 2.5, "an integer of at least 1"),
        ("batch_size_per_device", 0, "an integer of at least 1"),
        ("on_bad_sample", "ignore", "'stop' or 'skip'"),
        ("warmup_ratio", 1.0, r"a number in \[0, 1\)"),
        ("precision", "fp16", "'bf16' or 'fp32'"),
        ("images", "", "a text that is not empty or left out"),
        ("max_steps", 0, "an integer of at least 1 or left out"),
        ("image_grid_pinpoints", [[336]], r"a list of \[height, width\]"),
        ("gradient_checkpointing", "yes", "true or false"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name: str, value: Any, allowed: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^TrainConfig: {name} is .*; it must be .*{allowed}"):
        TrainConfig.from_dict(_tiny.settings(tmp_path, **{name: value}))


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'lr' is no setting; it must be one of model, data, .*learning_rate.*, cpu$"):
        TrainConfig.from_dict(_tiny.settings(tmp_path, lr=1e-3))


@pytest.mark.parametrize("name", ["model", "data", "output_dir", "phase", "learning_rate", "global_batch_size"])
def test_what_has_no_default_must_be_there(name: str, tmp_path: Path) -> None:
    settings = _tiny.settings(tmp_path)
    del settings[name]
    with pytest.raises(ValueError, match=f"^TrainConfig: {name} is missing; it must be "):
        TrainConfig.from_dict(settings)


def test_a_number_without_a_point_is_read_as_a_number(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    rates = "learning_rate: 1e-3\nlearning_rates: {projector: 2e-4}\n"
    file.write_text("model: 1e-3\ndata: d\noutput_dir: o\nphase: 1\nglobal_batch_size: 8\n" + rates)
    config = TrainConfig.from_yaml(file)
    assert (config.learning_rate, config.learning_rates, config.model) == (1e-3, {"projector": 2e-4}, "1e-3")


@pytest.mark.parametrize(
    ("content", "problem"), [("phase: [", "is not YAML"), ("- phase", "holds list"), ("", "holds NoneType")]
)
def test_a_file_that_holds_no_settings_is_one_sentence(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=problem) as raised:
        TrainConfig.from_yaml(file)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"absent\.yaml cannot be read: No such file"):
        TrainConfig.from_yaml(tmp_path / "absent.yaml")


def test_processes_that_cannot_share_the_global_batch_are_refused(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(_tiny.settings(tmp_path, global_batch_size=6, batch_size_per_device=4))
    with pytest.raises(ValueError, match="global_batch_size is 6; it must be a multiple of 4 samples in"):
        training_arguments(config)


@pytest.mark.parametrize("name", ["phase1", "phase2"])
def test_the_examples_hold_the_recipe_of_the_papers(name: str) -> None:
    config = TrainConfig.from_yaml(EXAMPLES / f"{name}.yaml")
    phase = {"phase1": (1, 1e-3, 256), "phase2": (2, 2e-4, 32)}[name]
    assert (config.phase, config.learning_rate, config.global_batch_size) == phase
    assert (config.epochs, config.train_vision_tower) == (1, False)
