"""The parts of a measurement, each held to something known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vr_kernels.cli.measure.accuracy import Verdict, error, errors
from vr_kernels.cli.measure.floor import Ceilings, h200
from vr_kernels.cli.measure.local_cross_attention import LocalCrossAttentionBench
from vr_kernels.cli.measure.local_cross_attention.cases import SHAPES, make_inputs
from vr_kernels.cli.measure.local_cross_attention.contenders import make_contender, windows_of
from vr_kernels.cli.measure.local_cross_attention.flex import flex
from vr_kernels.cli.measure.memory import Unknown, peak_memory
from vr_kernels.cli.measure.run import why_it_failed
from vr_kernels.cli.measure.timing import Spread, paired_seconds, ratios
from vr_kernels.ops.local_cross_attention.native import ENGINE

BENCH = LocalCrossAttentionBench()
TINY = SHAPES["tiny"]


def test_the_floor_of_the_papers_shape_is_the_known_one() -> None:
    case = replace(SHAPES["v2"], batch=8, dtype="bfloat16", device="cuda")
    floor = h200("bfloat16").floor(BENCH.operations(case), BENCH.bytes_moved(case))
    assert floor * 1e6 == pytest.approx(131, abs=1)


@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_those_of_the_matrix_products(backward: bool) -> None:
    case = replace(TINY, backward=backward)
    n, c, d, h, k = case.queries, case.channels, case.channels // case.heads, case.heads, case.keys
    projection, pooling = 2 * n * h * d * c, 2 * n * h * k * c
    forward = [projection] * 2 + [pooling] * 2  # u, o; scores, g
    gradients = [projection] * 4 + [pooling] * 2  # dg, dW_v, dq, dW_k; dp, du
    assert BENCH.operations(case) == sum(forward + gradients * backward)


def test_bytes_are_those_of_the_tensors() -> None:
    x = make_inputs(replace(TINY, backward=True))
    assert x.grad_out is not None
    moved = [x.query, *x.features, x.key_weight, x.value_weight, x.query]  # the output has the query's size
    assert BENCH.bytes_moved(TINY) == sum(tensor.nbytes for tensor in moved)
    moved += [x.grad_out, *x.trained]  # the gradients have the parameters' sizes
    assert BENCH.bytes_moved(replace(TINY, backward=True)) == sum(tensor.nbytes for tensor in moved)


def test_the_floor_is_the_larger_of_two_times() -> None:
    assert Ceilings(flops=60, bandwidth=10, source="").floor(60, 30) == pytest.approx(3)
    assert Ceilings(flops=12, bandwidth=30, source="").floor(60, 30) == pytest.approx(5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["ours", "naive", "absorbed", "unabsorbed"])
def test_every_contender_computes_the_same(name: str, backward: bool) -> None:
    x = make_inputs(replace(TINY, tiles=2, backward=backward))
    found = errors(make_contender(name, TINY)(x), BENCH.exact(TINY, x))
    assert len(found) == (4 if backward else 1)
    assert max(found) < 3e-6  # float32, and the largest value is one


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_of_flexattention_is_the_windows() -> None:
    x = make_inputs(replace(TINY, tiles=2))
    assert errors([flex(x)], BENCH.exact(TINY, x))[0] < 3e-6


def test_float64_is_image_by_image_and_sums_the_weights_gradients() -> None:
    x = make_inputs(replace(TINY, tiles=3, backward=True))
    exact = BENCH.exact(TINY, x)
    assert [tensor.shape for tensor in exact] == [x.query.shape, *[tensor.shape for tensor in x.trained]]


def test_the_inputs_attend_flatly_and_sharply() -> None:
    case = SHAPES["v2"].small()
    x = make_inputs(case)
    key = F.linear(windows_of(x), x.key_weight).unflatten(-1, (case.heads, -1))  # (N, K, h, d)
    query = x.query.flatten(0, 2).unflatten(-1, (case.heads, -1))  # (N, h, d)
    scores = torch.einsum("nhd,nkhd->nhk", query, key) / key.shape[-1] ** 0.5
    largest = scores.softmax(-1).amax(-1).mean(0)  # (h,)
    assert largest[:4].max() < 0.4
    assert largest[-4:].min() > 0.5


def test_nan_is_never_within_the_rule() -> None:
    nan = float("nan")
    assert not Verdict("output", nan, 1.0, 2.0).passes
    assert not Verdict("output", 1.0, nan, 2.0).passes
    assert not Verdict("output", 2.1, 1.0, 2.0).passes
    assert Verdict("output", 1.9, 1.0, 2.0).passes
    assert error(torch.tensor([1.0, nan]), torch.tensor([1.0, 1.0], dtype=torch.float64)) != 0


def test_every_contender_runs_once_a_round_in_changing_order() -> None:
    called: list[str] = []
    runs = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = paired_seconds(runs, "cpu", 6, lambda done: None)
    assert {len(times) for times in seconds.values()} == {len(called) // 3 - 1}  # the first round warms up
    rounds = ["".join(called[i : i + 3]) for i in range(3, 21, 3)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca", "bac"]


def test_fast_calls_get_more_rounds() -> None:
    seconds = paired_seconds({"a": lambda: None}, "cpu", 3, lambda done: None)
    assert len(seconds["a"]) > 1000


def test_a_ratio_is_taken_within_its_round() -> None:
    slowed = [1.0, 10.0, 1.0]  # the second round was disturbed, for both alike
    assert ratios([2 * t for t in slowed], slowed) == [2, 2, 2]


def test_the_spread_is_the_middle_of_the_values() -> None:
    assert Spread.of([float(i) for i in range(101)]) == (10, 50, 90)


def test_memory_sees_what_a_call_holds_at_its_peak() -> None:
    # In a process of its own: here, memory that earlier tests freed would be used again without a rise.
    peak = peak_memory("python_tests.cli._memory:two_buffers", {}, "cpu")["call"]
    assert 63 << 20 < peak < 68 << 20  # the system counts pages in batches


def test_memory_of_the_naive_form_holds_its_copies() -> None:
    case = replace(SHAPES["v2"], levels=(256, 256, 256), tiles=5)
    facts = vars(case) | {"levels": list(case.levels)}
    arguments = {"operator": BENCH.name, "case": facts, "names": ["ours", "naive"]}
    peaks = peak_memory("vr_kernels.cli.measure.run:memory_calls", arguments, "cpu")
    windows = case.images * case.grid**2 * case.channels * 4
    assert peaks["naive"] > 3 * windows  # the windows, K and V
    assert peaks["ours"] < ENGINE.block_bytes + windows  # one block, and the output


def test_a_failure_in_the_other_process_is_reported() -> None:
    with pytest.raises(Unknown, match="ModuleNotFoundError"):
        peak_memory("no_such_module:calls", {}, "cpu")


def test_the_reason_is_the_innermost_one() -> None:
    error = RuntimeError("backend failed")
    error.__cause__ = ValueError("the compiler's words\nand a long hint")
    assert why_it_failed(error) == "ValueError: the compiler's words"
