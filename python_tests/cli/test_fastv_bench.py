"""``vr-kernels bench fastv``: its contenders compute the same, and its floor counts what they must compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from vr_kernels.cli.commands import commands
from vr_kernels.cli.measure.fastv import FastVBench, contenders
from vr_kernels.cli.measure.fastv.cases import SHAPES, make_inputs

TINY = replace(SHAPES["tiny"], batch=3)


def test_the_public_codes_form_comes_out_the_same() -> None:
    x = make_inputs(TINY)
    with torch.no_grad():
        cache, ours = contenders.ours(TINY, x)
        public_cache, public = contenders.eager(TINY, x)
        plain, _ = contenders.plain(TINY, x)
    torch.testing.assert_close(ours, public, atol=1e-4, rtol=1e-4)
    for layer in range(TINY.layers):
        torch.testing.assert_close(cache.layers[layer].keys, public_cache.layers[layer].keys, atol=1e-4, rtol=1e-4)
        assert plain.get_seq_length(layer) == TINY.rows
        assert cache.get_seq_length(layer) == (TINY.rows if layer < TINY.layer else TINY.rows_left)


def test_the_decoders_share_their_parameters() -> None:
    x = make_inputs(TINY)
    for other in (x.eager, x.pruned):
        pairs = zip(x.sdpa.parameters(), other.parameters(), strict=True)
        assert all(one.data_ptr() == another.data_ptr() for one, another in pairs)


@pytest.mark.parametrize("name", ["ours", "eager", "sdpa"])
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_contender_is_near_float64(name: str, scored: bool, dtype: str) -> None:
    bench = FastVBench()
    case = replace(TINY.small() if scored else TINY, dtype=dtype, scored=scored and name != "sdpa")
    x = bench.inputs(case)
    results, exact = bench.contender(name, case)(x), bench.exact(case, x)
    assert len(results) == len(bench.quantities(case))
    for result, reference in zip(results, exact, strict=True):
        tolerance = 64 * torch.finfo(case.torch_dtype).eps
        torch.testing.assert_close(result.double(), reference, atol=tolerance * float(reference.abs().max()), rtol=0)


def test_operations_are_the_decoders_of_the_rows_that_each_layer_sees() -> None:
    """Eager attention, which is counted, computes both halves of the map."""
    counts = {}
    for rows in (TINY.rows, TINY.rows_left):
        x = make_inputs(TINY)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x.eager(inputs_embeds=x.embeddings[:, :rows])
        other_half = TINY.batch * TINY.layers * 2 * rows * rows * TINY.width
        counts[rows] = (counter.get_total_flops() - other_half) / TINY.layers
    expected = TINY.layer * counts[TINY.rows] + (TINY.layers - TINY.layer) * counts[TINY.rows_left]
    assert FastVBench().operations(TINY) == pytest.approx(expected, rel=1e-3)  # and RoPE's frequencies


def test_a_backward_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="FastV is for inference"):
        replace(TINY, backward=True)


def test_it_runs_from_the_command_line() -> None:
    result = CliRunner().invoke(commands, ["bench", "fastv", "--shape", "tiny", "--quick", "--compare", "sdpa"])
    assert result.exit_code == 0, result.output
    assert "last token (small shape)" in result.output
    assert "not measured" not in result.output
