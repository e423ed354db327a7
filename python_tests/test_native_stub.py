"""``_C.pyi`` says of the native module what pybind11 does: every name, parameter, default and type, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

import vr_kernels
from vr_kernels import _C

STUB = Path(vr_kernels.__file__).with_name("_C.pyi")

# How pybind11 writes what converts to a type, and what the stub writes.
SPELLINGS = [
    (r"typing\.SupportsInt( \| typing\.SupportsIndex)?", "int"),
    (r"typing\.SupportsFloat( \| typing\.SupportsIndex)?", "float"),
    (r"collections\.abc\.Sequence", "list"),
    (r"vr_kernels\._C\.", ""),
]

# name, type, default (None: it has none; "...": the stub need not say which); "*" stands before keywords.
Parameter = tuple[str, str, str | None]
Signature = tuple[tuple[Parameter, ...], str]


def signature(function: ast.FunctionDef, aliases: dict[str, str]) -> Signature:
    def spelt(node: ast.expr | None) -> str:
        text = "Any" if node is None else ast.unparse(node)
        return re.sub(r"\w+", lambda word: aliases.get(word[0], word[0]), text)

    def default(node: ast.expr | None) -> str | None:
        if node is None:
            return None
        value = ast.literal_eval(node)
        return f"{value:.6g}" if isinstance(value, float) else "..." if value in ([], ...) else repr(value)

    arguments = function.args
    positional = [parameter for parameter in arguments.args if parameter.arg != "self"]
    assert not arguments.defaults, f"{function.name}: pybind11's positional parameters have no defaults here"
    named = [(parameter.arg, spelt(parameter.annotation), None) for parameter in positional]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    named += [("*", "", None)] if arguments.kwonlyargs else []
    named += [(parameter.arg, spelt(parameter.annotation), default(value)) for parameter, value in keywords]
    return tuple(named), spelt(function.returns)


def of_docstring(docstring: str) -> Signature:
    """From pybind11's first line, such as ``isa() -> str``."""
    line = docstring.strip().splitlines()[0]
    for pattern, spelling in SPELLINGS:
        line = re.sub(pattern, spelling, line)
    function = ast.parse(f"def {line}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return signature(function, {})


def of_module(module: ModuleType) -> dict[str, object]:
    """Signatures by name; of a class, those of its constructor and its fields' types; of a constant, its type."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        if isinstance(value, type):
            found[f"{name}.__init__"] = of_docstring(value.__init__.__doc__ or "")
            for field, member in vars(value).items():
                if isinstance(member, property):
                    found[f"{name}.{field}"] = of_docstring(f"{field}{(member.fget.__doc__ or '').strip()}")[1]
        else:
            found[name] = of_docstring(value.__doc__ or "") if callable(value) else type(value).__name__
    return found


def of_stub(text: str) -> dict[str, object]:
    tree = ast.parse(text).body
    typed_dicts = [c.name for c in tree if isinstance(c, ast.ClassDef) and c.bases]
    aliases = dict.fromkeys(typed_dicts, "dict")
    found: dict[str, object] = {}
    for statement in tree:
        if isinstance(statement, ast.Assign):
            aliases[ast.unparse(statement.targets[0])] = ast.unparse(statement.value)
        elif isinstance(statement, ast.AnnAssign):
            found[ast.unparse(statement.target)] = ast.unparse(statement.annotation)
        elif isinstance(statement, ast.FunctionDef):
            found[statement.name] = signature(statement, aliases)
        elif isinstance(statement, ast.ClassDef) and statement.name not in typed_dicts:
            for member in statement.body:
                if isinstance(member, ast.AnnAssign):
                    found[f"{statement.name}.{ast.unparse(member.target)}"] = ast.unparse(member.annotation)
                elif isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    found[f"{statement.name}.__init__"] = (signature(member, aliases)[0], "None")
                elif isinstance(member, ast.FunctionDef) and len(member.args.args) == 1:  # a property, not its setter
                    found[f"{statement.name}.{member.name}"] = signature(member, aliases)[1]
    return found


def is_of_cuda(name: str) -> bool:
    return name.startswith("cuda_")


def test_the_stub_and_the_module_have_the_same_names() -> None:
    module, stub = set(of_module(_C)), set(of_stub(STUB.read_text()))
    if not _C.build_info()["cuda"]:
        stub = {name for name in stub if not is_of_cuda(name)}
    assert stub == module


@pytest.mark.parametrize("name", sorted(of_module(_C)))
def test_the_stub_has_the_signature_of_the_module(name: str) -> None:
    assert of_stub(STUB.read_text())[name] == of_module(_C)[name]


@pytest.mark.parametrize("name", ["build_info", "cpu_features"])
def test_a_dictionary_of_the_stub_has_the_keys_of_the_module(name: str) -> None:
    classes = {c.name: c for c in ast.parse(STUB.read_text()).body if isinstance(c, ast.ClassDef)}
    returned = next(f for f in ast.parse(STUB.read_text()).body if isinstance(f, ast.FunctionDef) and f.name == name)
    assert returned.returns is not None
    keys = [ast.unparse(k.target) for k in classes[ast.unparse(returned.returns)].body if isinstance(k, ast.AnnAssign)]
    assert list(getattr(_C, name)()) == keys


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def isa() -> str", "def isa(name: str) -> str"),
        ("def set_isa(name: str)", "def set_isa(named: str)"),
        ("def set_isa(name: str)", "def set_isa(name: int)"),
        ("first_window: int = 0", "first_window: int = 1"),
        ("first_window: int = 0", "first_window: int"),
        ("TOKEN_ROWS_PER_PART: int", "TOKEN_ROWS_PER_PART: float"),
        ("def isa() -> str: ...", ""),
    ],
)
def test_the_comparison_sees_a_stub_that_is_wrong(before: str, after: str) -> None:
    text = STUB.read_text()
    assert before in text
    assert of_stub(text.replace(before, after, 1)) != of_stub(text)
