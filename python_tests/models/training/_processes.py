"""Runs of ``vr-kernels train`` in processes of their own, alone or as many."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

COMMAND = "from vr_kernels.cli import main; main()"
# accelerate keeps FSDP to accelerators, so processes on the CPU pass for such ones; all else is its own code.
FSDP_ON_CPU = """
from accelerate import PartialState
from accelerate.utils import DistributedType
begin = PartialState.__init__
def begin_as_accelerator(state, *arguments, **options):
    begin(state, *arguments, **options)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = begin_as_accelerator
"""
EXAMPLES = Path(__file__).parents[3] / "examples" / "train"


def killed(*words: str) -> str:
    """A script's beginning: the process ends, as by kill -9, before torch saves a file whose path has all words."""
    return f"""
import os, signal, torch
save = torch.save
def save_or_end(content, file, *arguments, **options):
    if all(word in str(file) for word in {words!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file, *arguments, **options)
torch.save = save_or_end
"""


def train(
    settings: dict[str, Any], *options: str, processes: int = 1, accelerate: str | None = None, script: str = COMMAND
) -> list[tuple[int, str]]:
    """Exit code and output of each process. They find each other as those that ``accelerate launch`` starts.

    ``accelerate`` is the name of a configuration in examples/train; ``script`` stands for the command.
    """
    file = Path(settings["output_dir"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | _variables(accelerate)
    if processes > 1:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, "train", "--config", str(file), *options],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def _variables(accelerate: str | None) -> dict[str, str]:
    """What ``accelerate launch --config_file`` sets for its processes, by accelerate's own code."""
    if accelerate is None:
        return {}
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(EXAMPLES / f"{accelerate}.yaml"), "--main_process_port", "0", "script"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    names = ("ACCELERATE", "FSDP")
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith(names)}
