"""``vr-kernels bench visionzip``: its contenders compute the same, and its floor counts what they must compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vr_kernels.cli.measure.visionzip import VisionZipBench, contenders
from vr_kernels.cli.measure.visionzip.cases import SHAPES, make_inputs

TINY = replace(SHAPES["tiny"], batch=3)


def test_the_public_codes_form_hands_on_the_same_tokens() -> None:
    x = make_inputs(TINY)
    with torch.no_grad():
        ours, _ = contenders.ours(TINY, x)
        public, _ = contenders.eager(TINY, x)
    assert ours.shape == (3, 64, 64)
    torch.testing.assert_close(ours, public, atol=1e-4, rtol=1e-4)


def test_the_towers_share_their_parameters() -> None:
    x = make_inputs(TINY)
    pairs = zip(x.sdpa.parameters(), x.eager.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


@pytest.mark.parametrize("name", ["ours", "eager", "sdpa"])
@pytest.mark.parametrize("scored", [False, True])
def test_every_contender_is_near_float64(name: str, scored: bool) -> None:
    bench, case = VisionZipBench(), replace(TINY, scored=scored and name != "sdpa")
    x = bench.inputs(case)
    results, exact = bench.contender(name, case)(x), bench.exact(case, x)
    assert len(results) == len(bench.quantities(case))
    for result, reference in zip(results, exact, strict=True):
        torch.testing.assert_close(result.double(), reference, atol=1e-4, rtol=1e-4)


def test_operations_are_those_of_the_tower_without_its_last_block() -> None:
    counts = []
    for blocks in (3, 2):  # the last of three is none of ours
        case = replace(TINY, blocks=blocks)
        x = make_inputs(case)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x.eager(x.images)
        counts.append(counter.get_total_flops())
    assert VisionZipBench().operations(TINY) == counts[1]


def test_a_backward_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder is frozen"):
        replace(TINY, backward=True)
