"""Token fusion on the CPU at LLaVA-1.5's sizes, for pytest-benchmark; README.md here says how to run it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from vr_kernels.cli.measure.token_fusion import TokenFusionBench

BENCH = TokenFusionBench()
ON_CPU = [name for name in BENCH.baselines if BENCH.lacking(name, BENCH.shapes["mbtf"]) is None]


@pytest.mark.parametrize("name", ["ours", *ON_CPU])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", BENCH.default)
def test_token_fusion(measure: Callable[..., None], shape: str, dtype: str, backward: bool, name: str) -> None:
    measure(BENCH, replace(BENCH.shapes[shape], dtype=dtype, backward=backward), name)
