"""What ``vr-kernels bench deformable_attention`` and ``bench saliency`` measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from click.testing import Result as Invoked
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure.accuracy import errors
from vr_kernels.cli.measure.benches import BENCHES
from vr_kernels.cli.measure.deformable_attention import SHAPES as DEFORMABLE
from vr_kernels.cli.measure.deformable_attention import DeformableAttentionBench
from vr_kernels.cli.measure.saliency import SHAPES as TOWERS
from vr_kernels.cli.measure.saliency import SaliencyBench

BENCH, TOWER = DeformableAttentionBench(), SaliencyBench()


def bench(*arguments: str) -> Invoked:
    return CliRunner().invoke(commands, ["bench", *arguments, "--shape", "tiny", "--quick"])


def test_both_are_there_by_name() -> None:
    assert {"deformable_attention", "saliency"} <= set(BENCHES)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["ours", "grid_sample", "transformers", "reference"])
def test_every_contender_computes_the_same(name: str, backward: bool) -> None:
    case = replace(DEFORMABLE["tiny"], tiles=2, backward=backward)
    x = BENCH.inputs(case)
    found = errors(BENCH.contender(name, case)(x), BENCH.exact(case, x))
    assert len(found) == len(BENCH.quantities(case)) == (5 if backward else 1)
    assert max(found) < 3e-6


def test_bytes_are_those_of_the_tensors() -> None:
    case = replace(DEFORMABLE["tiny"], backward=True)
    x = BENCH.inputs(case)
    assert x.grad_out is not None
    inputs = sum(tensor.nbytes for tensor in x.trained)
    assert BENCH.bytes_moved(replace(case, backward=False)) == inputs + x.grad_out.nbytes
    assert BENCH.bytes_moved(case) == 2 * inputs + 3 * x.grad_out.nbytes


@pytest.mark.parametrize(("name", "count"), [("ours", 2), ("eager", 2), ("plain", 1)])
def test_the_towers_agree_on_the_level_and_two_of_them_on_the_saliency(name: str, count: int) -> None:
    case = TOWERS["tiny"]
    x = TOWER.inputs(case)
    found = errors(TOWER.contender(name, case)(x), TOWER.exact(case, x))
    assert len(found) == count
    assert max(found) < 3e-6


def test_a_tower_comes_back_from_float64_as_it_was() -> None:
    case = replace(TOWERS["tiny"], dtype="bfloat16")
    x = TOWER.inputs(case)
    before = {name: parameter.clone() for name, parameter in x.tower.named_parameters()}
    TOWER.exact(case, x)
    for name, parameter in x.tower.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_run_shows_every_row() -> None:
    result = bench("deformable_attention", "--compare", "transformers", "--backward")
    assert result.exit_code == 0, result.output
    assert "transformers" in result.stdout
    result = bench("saliency")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("ours", "eager", "plain"))


def test_a_backward_pass_of_the_tower_is_refused() -> None:
    result = bench("saliency", "--backward")
    assert result.exit_code == 2
    assert "forward alone" in result.output
