"""The same call gives the same bits: again, in another thread, with other threads, whatever was in the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from python_tests._cases import Call
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import PATCH_LINEAR, SUBJECTS, Subject, over, over_backends
from python_tests.ops._larger import LARGER, larger


def everything(subject: Subject, dtype: torch.dtype = torch.float32) -> Call:
    return subject.call(dtype=dtype, **subject.mixes["everything"])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_bits(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        assert torch.equal(result[name], expected[name]), name


@over_backends()
def test_250_repeats_have_the_same_bits(subject: Subject, backend: str) -> None:
    function, call = subject.run(backend), everything(subject)
    cotangents = random_cotangents(function, call)
    first = evaluate(function, call, cotangents)
    for _ in range(249):
        assert_same_bits(evaluate(function, call, cotangents), first)


# The sums of patch_linear are torch's GEMMs: MKL's change their bits with the number of threads where sizes are odd.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@over([subject for subject in SUBJECTS if subject is not PATCH_LINEAR])
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit(subject: Subject, dtype: torch.dtype) -> None:
    function, call = subject.run("cpu"), subject.call(dtype=dtype, **larger(subject))
    cotangents = random_cotangents(function, call)
    torch.set_num_threads(1)
    alone = evaluate(function, call, cotangents)
    for count in (2, 3, 8):
        torch.set_num_threads(count)
        assert_same_bits(evaluate(function, call, cotangents), alone)


@over([subject for subject in SUBJECTS if subject.name in LARGER])
@pytest.mark.usefixtures("threads")
def test_several_threads_obey_the_error_rule(subject: Subject) -> None:
    torch.set_num_threads(3)
    reference = subject.run("reference")
    assert_obeys_the_error_rule(
        subject.run("cpu"),
        reference,
        reference,
        lambda seed: subject.call(seed, **larger(subject)),
        draws=1,
        norms=["root_mean_square"],
    )


@over_backends()
def test_calls_in_several_python_threads_do_not_disturb_each_other(subject: Subject, backend: str) -> None:
    function, call = subject.run(backend), everything(subject)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    results = []

    def work() -> None:
        results.extend(evaluate(function, call, cotangents) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 80
    for result in results:
        assert_same_bits(result, expected)


@over_backends()
def test_what_the_memory_held_before_does_not_matter(subject: Subject, backend: str) -> None:
    function, call = subject.run(backend), everything(subject)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(1).isnan()
        poisoned = evaluate(function, call, cotangents)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(poisoned, expected)


@over_backends()
def test_a_call_after_a_larger_one_does_not_see_its_rest(subject: Subject, backend: str) -> None:
    function, call = subject.run(backend), everything(subject)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    larger = subject.call(1, **(subject.mixes["everything"] | subject.sizes[0]))
    evaluate(function, larger, random_cotangents(function, larger))
    assert_same_bits(evaluate(function, call, cotangents), expected)
