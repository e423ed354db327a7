"""lmms-eval itself, where it is installed: a task of each kind, on files of the test's own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from python_tests.models import _folders, _llava_vr

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")

SCRIPT = """
import json, sys
from types import SimpleNamespace
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager

folder, model = sys.argv[1:]
found = evaluator.simple_evaluate(
    model="llava_vr", model_args=f"pretrained={model},device=cpu", tasks=["answers", "choices"], batch_size=2,
    task_manager=TaskManager(include_path=folder, model_name="vr_kernels"), log_samples=True,
    cli_args=SimpleNamespace(output_path=None, process_with_media=False, verbosity="WARNING"),
)
samples = found["samples"].items()
print(json.dumps({task: [sample["filtered_resps"] for sample in of_task] for task, of_task in samples}))
"""
DOCUMENTS = [{"question": "w1 w2", "answer": "w5", "right": 0}, {"question": "w3", "answer": "w6", "right": 1}]
SHARED = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_visual": "images",
    "doc_to_text": "{{question}}",
}
TASKS = {
    "answers": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_new_tokens": 4, "temperature": 0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_target": "{{right}}",
        "doc_to_choice": ["w5", "w6"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}


def test_it_finds_the_model_and_evaluates_it(tmp_path: Path) -> None:
    _llava_vr.image().save(tmp_path / "image.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (tmp_path / "utils.py").write_text(
        f"from PIL import Image\ndef images(document): return [Image.open({str(tmp_path / 'image.png')!r})]\n"
    )
    for name, task in TASKS.items():
        files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}}
        text = yaml.safe_dump({"task": name, **SHARED, **files, **task})
        (tmp_path / f"{name}.yaml").write_text(
            text.replace("doc_to_visual: images", "doc_to_visual: !function utils.images")
        )
    entry = tmp_path / "entry" / "entry-0.dist-info"  # what installing this package leaves
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Name: entry\nVersion: 0\n")
    (entry / "entry_points.txt").write_text("[lmms_eval.models]\nvr_kernels = vr_kernels.models.lmms_eval:manifest\n")

    model = _folders.save_llava_vr(tmp_path / "model")
    places = [str(entry.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(model)], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(len(words.split()) == 4 for (words,) in found["answers"])
    assert all(loss > 0 and greedy in (True, False) for pair in found["choices"] for loss, greedy in pair)
