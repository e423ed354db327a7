"""Two processes, with a model each (DDP) or half of one (FSDP2), take the steps that one process takes.

Every fourth sample is text alone, so that in some steps one process has images and the other has none.
"""

from __future__ import annotations

import json
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule

from python_tests.models.training import _processes, _tiny
from vr_kernels.models.training import TrainConfig, train
from vr_kernels.models.training.trainer import check_shards, check_unused


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in json.loads((folder / "log.json").read_text()) if "loss" in line]


def check_as_alone(folder: Path, together: Path, **changes: Any) -> None:
    alone = train(TrainConfig.from_dict(_tiny.settings(folder, **changes)))
    assert losses(together) == pytest.approx(losses(folder / "out"), rel=1e-5)
    with (
        safe_open(alone.model / "model.safetensors", "pt") as one,
        safe_open(together / "model" / "model.safetensors", "pt") as two,
    ):
        assert one.keys() == two.keys()
        for name in one.keys():  # noqa: SIM118
            assert one.get_slice(name).get_shape() == two.get_slice(name).get_shape()
    configs = [json.loads((model / "config.json").read_text()) for model in (alone.model, together / "model")]
    assert configs[0] == configs[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _tiny.save_model(tmp_path / "start")
    _tiny.save_data(tmp_path)
    return tmp_path


def test_ddp_takes_the_steps_of_one_process(folder: Path) -> None:
    settings = _tiny.settings(folder, output_dir=str(folder / "ddp"), gradient_checkpointing=True)
    done = _processes.train(settings, processes=2, accelerate="ddp")
    assert [code for code, _ in done] == [0, 0], done
    assert done[0][1].count("Model: ") == 1
    assert "Model: " not in done[1][1]
    check_as_alone(folder, folder / "ddp")


def test_fsdp2_takes_the_steps_of_one_process_and_resumes_from_its_shards(folder: Path) -> None:
    settings = _tiny.settings(folder, output_dir=str(folder / "fsdp2"), save_steps=1)
    script = _processes.FSDP_ON_CPU + _processes.COMMAND
    killed = _processes.killed("checkpoint-3", "rng_state") + script
    done = _processes.train(settings, processes=2, accelerate="fsdp2", script=killed)
    assert [code for code, _ in done] == [-signal.SIGKILL] * 2, done
    saved = [path.name for path in (folder / "fsdp2").iterdir() if path.name.startswith("checkpoint")]
    assert sorted(saved) == ["checkpoint-1", "checkpoint-2"]
    shards = (folder / "fsdp2" / "checkpoint-2" / "pytorch_model_fsdp_0").glob("*.distcp")
    assert len(list(shards)) == 2

    done = _processes.train(settings, "--resume", processes=2, accelerate="fsdp2", script=script)
    assert [code for code, _ in done] == [0, 0], done
    check_as_alone(folder, folder / "fsdp2")


def test_fsdp2_trains_an_encoder_that_one_of_two_processes_does_not_use(folder: Path) -> None:
    # A sample a process: in the second step one has text alone. In the fourth both have, and the encoder goes on by its
    # momentum, which it does not in one process.
    changes: dict[str, Any] = {"train_vision_tower": True, "global_batch_size": 2, "max_steps": 4}
    settings = _tiny.settings(folder, output_dir=str(folder / "fsdp2"), **changes)
    script = _processes.FSDP_ON_CPU + _processes.COMMAND
    done = _processes.train(settings, processes=2, accelerate="fsdp2", script=script)
    assert [code for code, _ in done] == [0, 0], done
    check_as_alone(folder, folder / "fsdp2", **changes)


def test_a_torch_that_sums_no_unused_gradients_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_unused()
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    with pytest.raises(ValueError, match=r"this phase trains modules .* cannot under FSDP; it must have .* by DDP"):
        check_unused()


def test_the_vectors_of_fsdp1_are_refused_with_the_version_that_keeps_matrices() -> None:
    from accelerate import FullyShardedDataParallelPlugin

    check_shards(FullyShardedDataParallelPlugin(fsdp_version=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # accelerate deprecates it too
        old = FullyShardedDataParallelPlugin(fsdp_version=1)
    with pytest.raises(ValueError, match=r"fsdp_version is 1; it must be 2.*set fsdp_version: 2, as examples/train/"):
        check_shards(old)
