"""Writes python_tests/public_api.txt: every public name with its signature, so that a change of one is seen in review.

python -m python_tests.write_public_api
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path

RECORD = Path(__file__).with_name("public_api.txt")
MODULES = ("vr_kernels", "vr_kernels.nn", "vr_kernels.compression", "vr_kernels.models.llava_vr")


def record() -> str:
    first: dict[int, str] = {}  # name of what has been written
    lines: list[str] = []
    for module in map(importlib.import_module, MODULES):
        for public in sorted(module.__all__):
            name, value = f"{module.__name__}.{public}", getattr(module, public)
            if id(value) in first:
                lines.append(f"{name} is {first[id(value)]}")
            else:
                first[id(value)] = name
                lines += of_object(name, value)
    return "".join(f"{line}\n" for line in lines)


def of_object(name: str, value: object) -> Iterator[str]:
    """A line for a function or a constant; for a class, one for its call and one for each public member of its own."""
    if inspect.isclass(value):
        yield f"class {name}{call_of(value)}"
        for member, what in sorted(vars(value).items()):
            if not member.startswith("_") and is_of_its_source(value, member, what):
                yield from of_object(f"{name}.{member}", what)
    elif isinstance(value, (classmethod, staticmethod)):
        yield f"{type(value).__name__} {name}{call_of(value.__func__)}"
    elif isinstance(value, property):
        yield f"property {name}{call_of(value.fget)}"
    elif callable(value):
        yield f"{name}{call_of(value)}"
    elif isinstance(value, dict):
        yield f"{name} of {', '.join(sorted(value))}"
    else:
        yield f"{name}: {type(value).__name__}"


def is_of_its_source(owner: type, member: str, what: object) -> bool:
    """False for what a library's decorator or metaclass has added to a class, and for the values of its fields."""
    function = getattr(what, "__func__", getattr(what, "fget", what))
    return inspect.isroutine(function) and function.__module__ == owner.__module__


@dataclass(frozen=True)
class Source:
    """An annotation as the source has it: evaluated, it would be written otherwise by another Python."""

    annotation: typing.Any

    def __repr__(self) -> str:
        if isinstance(self.annotation, typing.ForwardRef):
            return self.annotation.__forward_arg__
        return self.annotation if isinstance(self.annotation, str) else inspect.formatannotation(self.annotation)


def is_inherited(owner: object, field: str) -> bool:
    """Whether a field of a dataclass is of another library: what it has there is no promise of ours."""
    if not (inspect.isclass(owner) and is_dataclass(owner)):
        return False
    return not any(field in inspect.get_annotations(c) for c in owner.__mro__ if c.__module__.startswith("vr_kernels"))


def call_of(function: typing.Any) -> str:
    signature = inspect.signature(function)
    empty = inspect.Signature.empty
    parameters = [
        parameter if parameter.annotation is empty else parameter.replace(annotation=Source(parameter.annotation))
        for parameter in signature.parameters.values()
        if not is_inherited(function, parameter.name)
    ]
    answer = signature.return_annotation
    return str(inspect.Signature(parameters, return_annotation=empty if answer is empty else Source(answer)))


if __name__ == "__main__":
    RECORD.write_text(record())
