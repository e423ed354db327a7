"""Options of the benchmark suites, and what a test of theirs does."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vr_kernels.cli.measure.bench import Bench, Case
from vr_kernels.cli.measure.run import verdicts_of


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiles", type=int, default=1, help="image tiles a call; the papers have 5")


@pytest.fixture
def tiles(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--tiles")


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Callable[[Bench[Any, Any], Case, str], None]:
    """Measures a contender of a bench by name, ours only if its results are right."""

    def run(bench: Bench[Any, Any], case: Case, name: str) -> None:
        if name == "ours":
            for verdict in verdicts_of(bench, case):
                assert verdict.passes, verdict
        contender, x = bench.contender(name, case), bench.inputs(case)
        contender(x)  # compiles what is compiled
        benchmark.group = str(case)
        benchmark.extra_info.update(asdict(case), contender=contender.what)
        benchmark(contender, x)

    return run
