"""Local cross-attention on the CPU at the papers' shapes, for pytest-benchmark; README.md here says how to run it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench

BENCH = LocalCrossAttentionBench()
ON_CPU = [name for name in BENCH.baselines if BENCH.lacking(name, BENCH.shapes["v2"]) is None]


@pytest.mark.parametrize("name", ["ours", *ON_CPU])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", BENCH.default)
def test_local_cross_attention(
    measure: Callable[..., None], shape: str, dtype: str, backward: bool, name: str, tiles: int
) -> None:
    measure(BENCH, replace(BENCH.shapes[shape], dtype=dtype, backward=backward, tiles=tiles), name)
