"""What ``vr-kernels bench local_attention`` measures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vr_kernels.cli.measure.accuracy import errors
from vr_kernels.cli.measure.local_attention import SHAPES, LocalAttentionBench

BENCH = LocalAttentionBench()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["ours", "naive"])
def test_every_contender_computes_the_same(name: str, backward: bool) -> None:
    case = replace(SHAPES["tiny"], tiles=2, backward=backward)
    x = BENCH.inputs(case)
    found = errors(BENCH.contender(name, case)(x), BENCH.exact(case, x))
    assert len(found) == len(BENCH.quantities(case)) == (4 if backward else 1)
    assert max(found) < 3e-6


def test_bytes_are_those_of_the_tensors() -> None:
    case = replace(SHAPES["tiny"], backward=True)
    x = BENCH.inputs(case)
    assert x.grad_out is not None
    once = sum(tensor.nbytes for tensor in x.trained) + x.grad_out.nbytes
    assert BENCH.bytes_moved(replace(case, backward=False)) == once
    assert BENCH.bytes_moved(case) == 2 * once


def test_what_needs_a_gpu_is_asked_for_there_alone() -> None:
    lacking = {name for name in BENCH.baselines if BENCH.lacking(name, SHAPES["tiny"]) is not None}
    assert lacking == {"triton", "cuda", "flash", "cudnn"}
    assert all(BENCH.lacking(name, replace(SHAPES["tiny"], device="cuda")) is None for name in BENCH.baselines)
