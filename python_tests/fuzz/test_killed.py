"""Saving that is killed, as by kill -9, before each of its writes: what has the final name is whole, old or new."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.integrations.vision_remember import _families as tiny
from vr_kernels import load_vision_remember, save_vision_remember
from vr_kernels.integrations.vision_remember.checkpoint import FILE
from vr_kernels.models.training.checkpoints import STAGING, publish

WRITES = {"open", "write", "flush", "close", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "CDLL"}

# Under Python 3.12 and newer.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def killed_at_every_write(work: Callable[[], None], check: Callable[[], None]) -> int:
    """Runs ``work`` in a process that is killed before its first write, in one killed before its second, and so on
    until one comes to its end; ``check`` looks at what each leaves. How many were killed."""
    for step in itertools.count(1):
        process = os.fork()
        if process == 0:
            run_until(step, work)
        status = os.waitpid(process, 0)[1]
        check()
        if status == 0:
            return step - 1
        assert os.WIFSIGNALED(status), "the process failed by itself"
    raise AssertionError


def run_until(step: int, work: Callable[[], None]) -> None:
    writes = itertools.count(1)

    def watch(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in WRITES and next(writes) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.setprofile(watch)
        work()
        code = 0
    finally:
        os._exit(code)


def test_blocks_on_the_disk_are_the_old_or_the_new_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    old, new = tiny.patched("llava", random=False), tiny.patched("llava")
    save_vision_remember(new, tmp_path / "another folder")
    save_vision_remember(old, tmp_path)
    weights = [load_file(tmp_path / FILE), load_file(tmp_path / "another folder" / FILE)]
    seen = []

    def check() -> None:
        found = load_file(tmp_path / FILE)
        seen.append([all(torch.equal(found[name], whole[name]) for name in found) for whole in weights])

    assert killed_at_every_write(lambda: save_vision_remember(new, tmp_path), check) >= 3
    assert [True, False] in seen
    assert [False, True] in seen
    assert [False, False] not in seen
    load_vision_remember(tiny.model("llava"), tmp_path)


@pytest.mark.parametrize("there", [False, True], ids=["a new name", "a name that is taken"])
def test_a_folder_of_training_is_the_old_or_the_new_one(tmp_path: Path, there: bool) -> None:
    final, parts = tmp_path / "model", ("weights", "config")
    seen = []

    def write(folder: Path, content: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            (folder / part).write_text(content)

    def work() -> None:
        staged = tmp_path / STAGING / "model"
        write(staged, "new")
        publish(staged, final)

    def check() -> None:
        contents = {(final / part).read_text() for part in parts} if final.exists() else {"none"}
        assert len(contents) == 1, "a folder is old in part and new in part"
        seen.extend(contents)

    if there:
        write(final, "old")
    assert killed_at_every_write(work, check) >= 5
    assert set(seen) == {"old" if there else "none", "new"}
