"""Of lmms-eval 0.7.3 what a model meets: the base class, the manifest, and requests of a local task."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from python_tests.models import _llava_vr


class lmms:
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    text: Any
    token_counts: Any = None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, contents in names.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


# Documents of a task: one image, two, and none.
DOCUMENTS = [
    {"question": "w1 w2", "images": [_llava_vr.image(seed=1)], "answer": "w5"},
    {"question": "w3 <image> w4 <image>", "images": [_llava_vr.image(30, 70, 2), _llava_vr.image(seed=3)]},
    {"question": "w6", "images": None, "answer": "w7 w8"},
]
PLACE = ("task", "test")


def images_of(document: dict[str, Any]) -> list[Any] | None:
    return document["images"]


def generations(*options: dict[str, Any]) -> list[Instance]:
    """A request a document."""
    return [
        Instance((document["question"], dict(asked), images_of, number, *PLACE))
        for number, (document, asked) in enumerate(zip(DOCUMENTS, options, strict=True))
    ]
