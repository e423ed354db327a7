"""The package as a whole: what importing it costs, what it offers, which way its imports run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vr_kernels
from python_tests import write_public_api
from vr_kernels.ops._dispatch import functions, operators

PACKAGE = Path(vr_kernels.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# Floors of the house, top first: a module may import its own floor and those below.
FLOORS = ["cli", "models", "integrations", "compression", "nn", "ops"]


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_loads_torch_and_nothing_that_is_optional() -> None:
    program = """import sys, torch; before = set(sys.modules); import vr_kernels
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
print("vr_kernels._C" in sys.modules)"""
    added, native = python(program).splitlines()
    assert set(added.split()) <= {"vr_kernels", "torch"}
    assert native == "False"


@pytest.mark.parametrize("missing", ["triton", "numpy", "transformers", "typer", "rich", "vr_kernels._C"])
def test_it_computes_without_what_is_optional(missing: str) -> None:
    program = f"""import sys; sys.modules[{missing!r}] = None
import torch, vr_kernels
print(*vr_kernels.local_attention(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 2, 2, 1, 2)).flatten().tolist())"""
    assert python(program) == "1.0 1.0"


def test_the_public_names_and_signatures_are_those_recorded() -> None:
    recorded = write_public_api.RECORD.read_text()
    assert write_public_api.record() == recorded, "to accept: python -m python_tests.write_public_api"


@pytest.mark.parametrize("module", ["vr_kernels", "vr_kernels.nn", "vr_kernels.compression"])
def test_public_names_are_documented(module: str) -> None:
    offered = importlib.import_module(module)
    for name in offered.__all__:
        assert getattr(offered, name).__doc__, name


def test_its_types_are_for_everyone() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_native_module_is_of_this_version() -> None:
    native = importlib.import_module("vr_kernels._C")
    assert native.build_info()["version"] == vr_kernels.__version__


MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "vr_kernels.")
    if module.name != "vr_kernels._C" and not module.name.endswith("__main__")
]


def source(name: str) -> Path:
    path = PACKAGE.parent / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, functions' own imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("vr_kernels."))


def floor(module: str) -> int:
    name = module.split(".")[1]
    return FLOORS.index(name) if name in FLOORS else len(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_down(name: str) -> None:
    for imported in imports(source(name)):
        assert floor(imported) >= floor(name), f"{name} imports {imported}"


# Parts of module names -> the backend that the module is part of. CPU and CUDA share vr_kernels._C and what calls it.
SHARED = ("native", "native_file", "window_native", "token_native", "cuda", "cuda_fused")
BACKENDS = {**dict.fromkeys(SHARED, "native"), "triton": "triton", "triton_kernels": "triton"}

# What runs in plain PyTorch has the backend's name in its operator's room; elsewhere that name may mean another thing.
PLAIN = {
    f"{function.__module__}.{module}": backend.name
    for function, operator in functions().items()
    for backend in operator.backends
    for module in [{"grid_sample": "stock"}.get(backend.name, backend.name)]
    if module not in BACKENDS
}

# A module -> the other backend that it may import, and why.
EXCEPTIONS = {
    "vr_kernels.ops.attention_received.native": "blocked",  # the same blocks, with csrc's pass over their scores
    "vr_kernels.ops.local_cross_attention.absorbed": "reference",  # local_attention's, of whose windows some are empty
}


def backend_of(module: str) -> str | None:
    plain = next((name for own, name in PLAIN.items() if f"{module}.".startswith(f"{own}.")), None)
    return plain or next((BACKENDS[part] for part in module.replace("._", ".").split(".") if part in BACKENDS), None)


def other_backends(name: str) -> set[str]:
    """Those that a module imports, beside its own."""
    return {
        found for imported in imports(source(name)) if (found := backend_of(imported)) not in (None, backend_of(name))
    }


@pytest.mark.parametrize("name", [name for name in MODULES if backend_of(name)])
def test_backends_do_not_import_each_other(name: str) -> None:
    assert other_backends(name) == ({EXCEPTIONS[name]} if name in EXCEPTIONS else set())


def test_every_backend_has_a_module_that_the_rule_sees() -> None:
    seen = {backend_of(name) for name in MODULES}
    in_c_or_triton = {"cpu", "cuda", "cuda_fused", "triton", "triton_fused"}
    assert {backend.name for operator in operators() for backend in operator.backends} - in_c_or_triton <= seen


def test_the_rules_see_what_they_forbid() -> None:
    assert floor("vr_kernels.nn.x") < floor("vr_kernels.ops.x") < floor("vr_kernels._version")
    assert backend_of("vr_kernels.ops._native") == backend_of("vr_kernels.ops.local_cross_attention.native") == "native"
    assert backend_of("vr_kernels.ops._triton.launch") == "triton"
    assert backend_of("vr_kernels.ops.attention_received.blocked.forward") == "blocked"
    assert backend_of("vr_kernels.ops.token_fusion.blocked") is None
    assert "vr_kernels.ops" in set(imports(source("vr_kernels.nn.local_cross_attention")))


@pytest.mark.parametrize("name", ["vr_kernels", *MODULES])
def test_examples_in_docstrings_run(name: str) -> None:
    if "gradio" in source(name).read_text():
        pytest.importorskip("gradio", reason="the page needs the extra app")
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


def test_public_functions_and_modules_have_an_example() -> None:
    for name in set(vr_kernels.__all__) - {"__version__"}:
        assert ">>> " in getattr(vr_kernels, name).__doc__, name


@pytest.mark.parametrize(
    "path",
    [p for folder in ("vr_kernels", "csrc", "python_tests", "bench") for p in sorted((REPOSITORY / folder).rglob("*.*"))
     if p.suffix in (".py", ".cpp", ".h", ".inl", ".cu")],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)  # fmt: skip
def test_a_file_holds_one_idea_in_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
