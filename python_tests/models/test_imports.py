"""What may be missing from an installation, and what must not be imported before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *where: (
    None if name.split(".")[0] in {names!r} else find(name, *where)
)
"""

RUN = """
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from python_tests.models import _llava_vr as tiny
from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration

model = tiny.model("clip", vr_saliency="value")
processor = tiny.processor(model.config)
inputs = tiny.inputs(processor, ["w1 <image> w2"], [tiny.image()])
first = model.generate(**inputs, max_new_tokens=3, do_sample=False)
model.save_pretrained({folder!r})
processor.save_pretrained({folder!r})
inputs = tiny.inputs(AutoProcessor.from_pretrained({folder!r}), ["w1 <image> w2"], [tiny.image()])
second = AutoModelForImageTextToText.from_pretrained({folder!r}).generate(**inputs, max_new_tokens=3, do_sample=False)
assert torch.equal(first, second)
"""


def run(script: str, names: tuple[str, ...]) -> None:
    script = BLOCKED.format(names=names) + script
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_model_runs_without_torchvision_triton_peft_and_kernels(tmp_path: Path) -> None:
    run(RUN.format(folder=str(tmp_path)), ("torchvision", "triton", "peft", "kernels", "accelerate"))


def test_importing_the_packages_needs_nothing_but_torch() -> None:
    packages = "vr_kernels, vr_kernels.models, vr_kernels.integrations, vr_kernels.compression"
    run(f"import {packages}", ("transformers", "peft", "PIL", "triton", "torchvision", "accelerate"))


def test_what_is_blocked_cannot_be_imported() -> None:
    """So the tests above can fail."""
    with pytest.raises(AssertionError, match="No module named 'PIL'"):
        run("import PIL", ("PIL",))
