"""The examples run offline, and print what they promise."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

PROMISES = {
    "drop_in_local_cross_attention": ["largest difference of gradients: "],
    "llava_vr_two_phases": ["phase 2: mean loss ", "a fresh process answers alike: True"],
    "patch_qwen2_5_vl": ["untrained blocks change nothing: True", "step 1: loss ", "loaded, answers alike: True"],
    "stf": ["tokens (2, 16, 96)", "gradients for 10 of 10 parameters"],
    "visionzip_llava_next": ["with VisionZip:            72 ", "without it again:          114 "],
}


def test_every_example_is_tested() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("[!_]*.py")) == sorted(PROMISES)


# What an example imports -> the extra that brings it, of which `examples` has all.
BROUGHT = {"transformers": "models", "PIL": "models", "tokenizers": "models", "skimage": "examples"}


def test_the_page_has_every_example_with_its_command_and_its_extra() -> None:
    page = (EXAMPLES / "README.md").read_text()
    needed = dict(re.findall(r"^\| `(\w+)\.py` \| .* \| (.*) \|$", page, re.MULTILINE))
    assert set(needed) == set(PROMISES)
    for name in PROMISES:
        assert f"\n    python examples/{name}.py\n" in page
        imported = re.findall(r"^(?:from|import) (\w+)", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE)
        foreign = set(imported) - {*sys.stdlib_module_names, "torch", "vr_kernels"}
        brought = {BROUGHT[module] for module in foreign}
        assert needed[name] == ("`examples`" if "examples" in brought else "`models`" if brought else "torch alone")


@pytest.mark.parametrize("name", PROMISES)
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for promise in PROMISES[name]:
        assert promise in printed
