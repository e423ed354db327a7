"""What the README and the documentation say runs, what they name exists, and what they show was measured."""

import contextlib
import importlib
import inspect
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests import _docs
from vr_kernels import compression, integrations, nn
from vr_kernels.compression import projectors, pruning
from vr_kernels.ops._dispatch import functions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "bench/README.md", "examples/README.md")),
        *ROOT.glob("docs/**/*.md"),
    ]
}
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


def python_blocks(page: str) -> list[tuple[str, str]]:
    """Each block that runs, and what the page says it prints: the indented block behind it, or nothing."""
    fenced = r"^```python\n(.*?)^```$(?:\n\n((?: {4}[^\n]*\n)+))?"
    blocks = re.findall(fenced, PAGES[page], re.MULTILINE | re.DOTALL)
    return [(block, textwrap.dedent(printed)) for block, printed in blocks if not INCLUDED.match(block)]


def typed_lines() -> Iterator[tuple[str, str]]:
    """What a reader may type: the lines of indented blocks, and of blocks fenced as console input."""
    for page, text in PAGES.items():
        fenced = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        lines = re.findall(r"^ {4,}(\S.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.M)
        for line in [*lines, *"".join(fenced).splitlines()]:
            yield page, line


def indented_lines() -> Iterator[tuple[str, str]]:
    """The same without the variables in front."""
    for page, line in typed_lines():
        yield page, re.sub(r"^([A-Z_]+=\S+ )+", "", line)


def titled(page: str, name: str) -> bool:
    return f"`{name}`" in page.splitlines()[0]


def bench_script(name: str) -> ModuleType:
    """A script of ``bench``, which finds the others beside it as it does when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        return importlib.import_module(name)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    given: Callable[[], dict[str, Any]] = _docs.GIVEN.get(page, dict)
    names: dict[str, Any] = given()
    for block, printed in python_blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(block, page, "exec"), names)
        assert printed in said.getvalue()


def test_the_readme_and_the_tutorial_have_examples() -> None:
    assert len(python_blocks("README.md")) >= 3
    assert len(python_blocks("docs/tutorial.md")) >= 3


def test_python_stands_in_blocks_that_are_run() -> None:
    loose = [(page, line) for page, line in indented_lines() if re.match(r"(import|from) \w|>>> ", line)]
    assert not loose


def test_every_command_and_option_exists() -> None:
    import typer

    from vr_kernels.cli.commands import commands

    built = typer.main.get_command(commands).commands
    known = {
        name: {option for p in command.params for option in [*p.opts, *p.secondary_opts]}
        for name, command in built.items()
    }
    named = [found for _, line in indented_lines() if (found := re.search(r"(?:^|_python )vr-kernels (\w+)(.*)", line))]
    assert {found[1] for found in named} >= {"info", "bench", "generate", "train"}
    for found in named:
        command, options = found[1], set(re.findall(r" (--[\w-]+)", found[2])) - {"--help"}
        assert options <= known.get(command, set()), found[0]


def test_every_bench_exists() -> None:
    from vr_kernels.cli.measure.benches import BENCHES

    named = {found[1] for _, line in indented_lines() if (found := re.match(r"vr-kernels bench (\w+)", line))}
    assert named
    assert named <= set(BENCHES)


def test_every_make_target_exists() -> None:
    named = {found[1] for _, line in indented_lines() if (found := re.match(r"make ([a-z-]+)", line))}
    named.update(target for text in PAGES.values() for target in re.findall(r"`make ([a-z-]+)`", text))
    assert named >= {"demo", "test", "docs"}
    assert all(re.search(rf"^(?:.* )?{target}\b.*:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in named)


def test_every_module_and_script_that_python_is_to_run_exists() -> None:
    named = {found[1] for _, line in indented_lines() if (found := re.match(r"python (-m \S+|\S+\.py)", line))}
    for name in named - {"train.py"}:  # the reader's own
        if name.startswith("-m "):
            assert importlib.util.find_spec(name.removeprefix("-m ")) is not None, name
        else:
            assert (ROOT / name).is_file(), name


def test_every_extra_is_named_where_it_is_explained() -> None:
    (listed,) = re.findall(
        r"^\[project\.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    extras = {line.partition(" = ")[0] for line in listed.splitlines()}
    assert "examples" in extras
    named = set(re.findall(r"`([\w-]+)`", PAGES["docs/install.md"]))
    assert extras - named == set()
    typed = {
        extra
        for _, line in typed_lines()
        for found in re.findall(r"\.\[([\w,]+)\]", line)
        for extra in found.split(",")
    }
    assert typed <= extras


def test_every_included_file_exists() -> None:
    named = [path for text in PAGES.values() for path in INCLUDED.findall(text)]
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_test_that_a_page_names_exists() -> None:
    named = re.findall(r"`(python_tests/[\w/]+\.py)::(\w+)`", "\n".join(PAGES.values()))
    assert {page for page, text in PAGES.items() if "`python_tests/" in text} >= {
        "docs/support.md",
        "docs/determinism.md",
    }
    assert [f"{path}::{test}" for path, test in named if f"def {test}(" not in (ROOT / path).read_text()] == []


def test_the_families_of_the_support_matrix_are_those_of_the_tests() -> None:
    (header,) = re.findall(r"^\| feature \| (`llava`.*) \| test \|$", PAGES["docs/support.md"], re.MULTILINE)
    families = re.findall(r"`(\w+)`", header)
    rows = re.findall(r"^\|.+?\|(.+)\| `(python_tests/\S+)\.py::(\w+)` \|$", PAGES["docs/support.md"], re.MULTILINE)
    rows = [(cells.split("|"), path, test) for cells, path, test in rows if cells.count("|") == len(families) - 1]
    assert len(rows) > 10
    for cells, path, test in rows:
        ticked = {family for family, cell in zip(families, cells, strict=True) if cell.strip()}
        marks = getattr(importlib.import_module(path.replace("/", ".")), test).pytestmark
        assert ticked == families_of(marks), test


def families_of(marks: list[pytest.Mark]) -> set[str]:
    """The values of a test's parameter ``kind``."""
    for mark in marks:
        if mark.name == "parametrize" and "kind" in mark.args[0]:
            return {value if isinstance(value, str) else value[mark.args[0].index("kind")] for value in mark.args[1]}
    return set()


def test_every_public_name_is_in_the_api_pages() -> None:
    documented = set(re.findall(r"^::: vr_kernels\.(\S+)$", "\n".join(PAGES.values()), re.MULTILINE))
    rooms = [vr_kernels, nn, compression, projectors, pruning, integrations]
    public = [getattr(room, name) for room in rooms for name in room.__all__]
    public = [value for value in public if inspect.isclass(value) or inspect.isfunction(value)]
    places = {f"{value.__module__}.{value.__qualname__}".removeprefix("vr_kernels.") for value in public}
    assert sorted(places - documented) == []


def test_every_operator_has_a_page_with_its_reference() -> None:
    for name in (name for name in vr_kernels.__all__ if inspect.isfunction(getattr(vr_kernels.ops, name, None))):
        if name in {"explain", "window_index_from_grid"}:
            continue
        pages = [text for page, text in PAGES.items() if page.startswith("docs/operators/") and titled(text, name)]
        assert len(pages) == 1, name
        for section in ("Equation", "Shapes", "Reference", "Data movement", "Kernels"):
            assert f"## {section}" in pages[0], (name, section)


def test_the_kernels_of_an_operator_s_page_are_its_backends() -> None:
    for function, operator in functions().items():
        (page,) = [text for page, text in PAGES.items() if "/operators/" in page and titled(text, function.__name__)]
        cells = re.findall(r"^\| (`.+?) \|", page.partition("## Kernels")[2], re.MULTILINE)
        if cells:  # cls_saliency has those of the operator that it calls
            named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
            assert named == {backend.name for backend in operator.backends}, function.__name__


def test_the_figures_are_made_from_the_committed_records() -> None:
    made = bench_script("tables")
    assert made.in_readme(README) == README
    assert made.page() == made.PAGE.read_text()
