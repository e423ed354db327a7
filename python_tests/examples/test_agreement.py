"""``examples/agreement`` without network or authors' files: it finds faults, and the page says what its record says."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.agreement import __main__ as command
from examples.agreement import compare, llama, page, run, sources

RIGHT = b"from .missing import part\nimport nowhere_to_be_found\nnumber = 7\n"


@pytest.fixture
def somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of one file, and where it belongs."""
    source = sources.Source("somebody/Something", "0" * 40, {"a/b.py": hashlib.sha256(RIGHT).hexdigest()})
    monkeypatch.setattr(sources, "SOURCES", {"Something": source})
    monkeypatch.setattr(sources, "AUTHORS", tmp_path)
    monkeypatch.setattr(sources, "OLD_TRANSFORMERS", tmp_path)  # is there
    return tmp_path / "Something" / "a" / "b.py"


def answer(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """The addresses that are asked for, of which each gives ``content``."""
    asked: list[str] = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(content)

    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    return asked


def test_every_source_has_a_repository_a_commit_and_checksums() -> None:
    for key, source in sources.SOURCES.items():
        assert key.isidentifier()
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository)
        assert re.fullmatch(r"[0-9a-f]{40}", source.commit)
        assert source.files
        for path, digest in source.files.items():
            assert path.endswith(".py")
            assert not path.startswith("/")
            assert ".." not in path
            assert re.fullmatch(r"[0-9a-f]{64}", digest)


def test_a_file_is_fetched_once_from_its_commit(somebody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, RIGHT)
    sources.fetch()
    sources.fetch()
    assert asked == [f"https://raw.githubusercontent.com/somebody/Something/{'0' * 40}/a/b.py"]
    assert somebody.read_bytes() == RIGHT


def test_a_file_with_another_checksum_is_refused_and_not_kept(somebody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, RIGHT + b"\n")
    with pytest.raises(ValueError, match=r"a/b\.py is not the file compared with: its sha256 is [0-9a-f]{64}, and"):
        sources.fetch()
    assert not somebody.exists()


def test_a_file_that_was_changed_here_is_neither_kept_nor_run(somebody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, RIGHT)
    sources.fetch()
    somebody.write_bytes(b"raise SystemExit")
    for step in (sources.fetch, lambda: sources.load("Something", "a/b.py")):
        with pytest.raises(ValueError, match="is not the file compared with"):
            step()


def test_a_file_that_is_missing_says_how_to_fetch_it(somebody: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`python -m examples\.agreement fetch` fetches it"):
        sources.load("Something", "a/b.py")


def test_what_a_file_imports_and_nobody_has_is_empty_for_it_alone(
    somebody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, RIGHT)
    sources.fetch()
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        sources.load("Something", "a/b.py")
    module = sources.load("Something", "a/b.py", absent=("nowhere_to_be_found",), given=1)
    assert (module.number, module.given) == (7, 1)
    assert isinstance(module.part, type)
    assert "nowhere_to_be_found" not in sys.modules
    sys.modules.pop("authors.Something.a.b")


class Attention(nn.Module):
    """Theirs: one projection for query, key and value, and a bias that all keys share."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = nn.Linear(6, 18, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.joined(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


class Separate(nn.Module):
    """Ours: three."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*(part(x) for part in self.parts))


def attentions() -> tuple[Attention, Separate, list[compare.Pair], Tensor]:
    theirs, ours = Attention(), Separate()
    compare.randomise(theirs, 0)
    pairs: list[compare.Pair] = [
        (theirs.joined.weight, [part.weight for part in ours.parts]),
        (theirs.joined.bias, [part.bias for part in ours.parts]),
    ]
    compare.copy_weights(pairs)
    return theirs, ours, pairs, compare.leaf(2, 5, 6, dtype=torch.float64, seed=1)


def test_equal_weights_agree_but_for_rounding() -> None:
    theirs, ours, pairs, x = attentions()
    row = compare.compare("", "", theirs(x), ours(x), pairs, [x])
    assert max(row.outputs, row.gradients) < 1e-14  # type: ignore[type-var]
    assert row.dtype == "float64"


@pytest.mark.parametrize("part", range(3))
def test_one_weight_that_differs_is_found(part: int) -> None:
    theirs, ours, pairs, x = attentions()
    with torch.no_grad():
        ours.parts[part].weight[2, 3] += 1e-4
    row = compare.compare("", "", theirs(x), ours(x), pairs, [x])
    assert row.outputs > 1e-7  # type: ignore[operator]
    assert row.gradients > 1e-7  # type: ignore[operator]


@pytest.mark.parametrize("of_weight", [False, True])
def test_a_gradient_that_differs_is_found_where_outputs_agree(of_weight: bool) -> None:
    theirs, ours, pairs, x = attentions()
    extra = ours.parts[2].bias.sum() if of_weight else x.sum()
    row = compare.compare("", "", theirs(x), ours(x) + 1e-4 * (extra - extra.detach()), pairs, [x])
    assert row.outputs < 1e-14  # type: ignore[operator]
    assert row.gradients > 1e-6  # type: ignore[operator]


def test_a_gradient_that_is_zero_but_for_rounding_must_be_so_in_both() -> None:
    theirs, ours, _, x = attentions()
    pairs: list[compare.Pair] = [(theirs.joined.weight, [part.weight for part in ours.parts])]
    shared = torch.zeros(6, dtype=torch.float64, requires_grad=True)  # added to all keys, it changes nothing

    def run_with(scale: float) -> float:
        query, key, value = (part(x) for part in ours.parts)
        out = nn.functional.scaled_dot_product_attention(query, key + shared, value)
        out = out + scale * (shared - shared.detach())
        expected = nn.functional.scaled_dot_product_attention(
            *(part + shared * (i == 1) for i, part in enumerate(theirs.joined(x).chunk(3, -1)))
        )
        return compare.gradient_error(expected, out, pairs, [x, shared])

    assert run_with(0) < 1e-14
    assert run_with(1e-6) > 1


def test_pairs_by_name_leave_no_name_out() -> None:
    with pytest.raises(ValueError, match=r"theirs has \['joined.bias', 'joined.weight'\], ours \['parts.0.bias'"):
        compare.by_name(Attention(), Separate())


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.tensor([1.0, float("nan")])])
def test_results_of_another_shape_or_not_finite_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ours has shape \(2, 3\)|not finite"):
        compare.relative_error(bad, torch.ones(2))


def pruned_case() -> dict[str, Any]:
    """What the old process hands over, made here."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {"num_hidden_layers": 3, "num_key_value_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=8, num_attention_heads=4, vocab_size=99, **config)
    )
    case = {
        "weights": {name: 20 * value for name, value in model.state_dict().items()},
        "config": config,
        "inputs": compare.normal(1, 12, 16, dtype=torch.float32, seed=1),
        "next": compare.normal(1, 1, 16, dtype=torch.float32, seed=2),
        "span": (2, 10),
        "options": {"layer": 1, "keep_ratio": 0.5},
    }
    return case | {"runs": [llama.hidden_states("fastv", case)]}


def test_other_tokens_are_counted_and_hide_no_error() -> None:
    pytest.importorskip("transformers")
    case = pruned_case()
    good = case["runs"][0]
    assert [state.shape[1] for state in good] == [12, 8, 8, 1, 1, 1]  # the prompt, then the token after it
    off = [state * (1 + 1e-5) for state in good]
    other = [*good[:-1], good[-1].flip(-1)]
    shorter = [state[:, 1:] if state.shape[1] == 8 else state for state in good]
    (row,) = llama.rows("FastV", [case | {"runs": [good, off, other, shorter]}])
    assert (row.same, row.runs, row.own) == (2, 4, 1)
    assert 1e-7 < row.outputs < 1e-4  # type: ignore[operator]


def test_the_page_says_what_the_record_says() -> None:
    text = page.PAGE.read_text()
    assert page.with_record(text, run.recorded()) == text


def test_the_page_follows_a_record_that_gets_worse() -> None:
    text, rows = page.PAGE.read_text(), run.recorded()
    first = next(i for i, row in enumerate(rows) if row.method == "mlp")
    rows[first] = replace(rows[first], outputs=1.1e-3)
    changed = page.with_record(text, rows)
    assert "2 sizes: float64 2e-3 / 0, float32 bit for bit" in changed
    rows[first] = replace(rows[first], method="nobody's")
    with pytest.raises(ValueError, match="has no row of nobody's"):
        page.with_record(text, rows)
    with pytest.raises(ValueError, match="has a row of mlp, or two; the record has ldpv2"):
        page.with_record(text, [row for row in rows if row.method not in ("mlp", "nobody's")])


def test_the_record_is_of_these_sources_and_in_both_dtypes() -> None:
    record = run.read_record(run.RECORD)
    assert record["sources"] == {source.repository: source.commit for source in sources.SOURCES.values()}
    assert record["old"] == list(sources.OLD_PACKAGES)
    text = page.PAGE.read_text().partition(page.HEADING)[2]
    for repository, commit in record["sources"].items():
        assert f"{repository} {commit[:7]}" in text
    major_minor = {name: ".".join(record["versions"][name].split(".")[:2]) for name in ("torch", "transformers")}
    assert f"torch {major_minor['torch']}," in text
    assert f"ours on {major_minor['transformers']}." in text
    rows = run.recorded()
    assert len({row.method for row in rows}) == len(run.METHODS)
    for method in {row.method for row in rows}:
        assert {row.dtype for row in rows if row.method == method} == {"float64", "float32"}


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, "0"), (6.1e-16, "7e-16"), (9.3e-8, "1e-7"), (2e-3, "2e-3"), (9e-5, "9e-5")]
)
def test_an_error_is_rounded_up(error: float, text: str) -> None:
    assert page.rounded_up(error) == text
    assert float(text) >= error


def test_a_method_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agreement", "mlp", "fastvee"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no such step or method: fastvee" in capsys.readouterr().err
