"""Local cross-attention on the CPU at the papers' shapes, for pytest-benchmark; README.md here says how to run it."""

from dataclasses import asdict, replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vr_kernels.cli.measure.cases import PAPER_SHAPES, SHAPES, make_inputs
from vr_kernels.cli.measure.contenders import BASELINES, make_contender, split_by_device
from vr_kernels.cli.measure.run import verdicts_of


@pytest.mark.parametrize("name", ["ours", *split_by_device(BASELINES, "cpu")[0]])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", PAPER_SHAPES)
def test_local_cross_attention(
    benchmark: BenchmarkFixture, shape: str, dtype: str, backward: bool, name: str, tiles: int
) -> None:
    case = replace(SHAPES[shape], dtype=dtype, backward=backward, tiles=tiles)
    if name == "ours":
        for verdict in verdicts_of(case):
            assert verdict.passes, verdict
    contender, x = make_contender(name, case), make_inputs(case)
    contender(x)  # compiles what is compiled
    benchmark.group = str(case)
    benchmark.extra_info.update(asdict(case), contender=contender.what)
    benchmark(contender, x)
