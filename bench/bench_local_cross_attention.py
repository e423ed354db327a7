"""Local cross-attention on the CPU at the papers' shapes, for pytest-benchmark; README.md here says how to run it."""

from dataclasses import asdict, replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench
from vr_kernels.cli.measure.run import verdicts_of

BENCH = LocalCrossAttentionBench()
ON_CPU = [name for name in BENCH.baselines if BENCH.lacking(name, BENCH.shapes["v2"]) is None]


@pytest.mark.parametrize("name", ["ours", *ON_CPU])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", BENCH.default)
def test_local_cross_attention(
    benchmark: BenchmarkFixture, shape: str, dtype: str, backward: bool, name: str, tiles: int
) -> None:
    case = replace(BENCH.shapes[shape], dtype=dtype, backward=backward, tiles=tiles)
    if name == "ours":
        for verdict in verdicts_of(BENCH, case):
            assert verdict.passes, verdict
    contender, x = BENCH.contender(name, case), BENCH.inputs(case)
    contender(x)  # compiles what is compiled
    benchmark.group = str(case)
    benchmark.extra_info.update(asdict(case), contender=contender.what)
    benchmark(contender, x)
