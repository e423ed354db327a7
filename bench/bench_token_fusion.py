"""Token fusion on the CPU at LLaVA-1.5's sizes, for pytest-benchmark; README.md here says how to run it."""

from dataclasses import asdict, replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vr_kernels.cli.measure.run import verdicts_of
from vr_kernels.cli.measure.token_fusion import TokenFusionBench

BENCH = TokenFusionBench()
ON_CPU = [name for name in BENCH.baselines if BENCH.lacking(name, BENCH.shapes["mbtf"]) is None]


@pytest.mark.parametrize("name", ["ours", *ON_CPU])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", BENCH.default)
def test_token_fusion(benchmark: BenchmarkFixture, shape: str, dtype: str, backward: bool, name: str) -> None:
    case = replace(BENCH.shapes[shape], dtype=dtype, backward=backward)
    if name == "ours":
        for verdict in verdicts_of(BENCH, case):
            assert verdict.passes, verdict
    contender, x = BENCH.contender(name, case), BENCH.inputs(case)
    contender(x)  # compiles what is compiled
    benchmark.group = str(case)
    benchmark.extra_info.update(asdict(case), contender=contender.what)
    benchmark(contender, x)
