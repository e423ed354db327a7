"""Every operator on calls that hypothesis draws: right ones give what the reference gives, and no spoilt one escapes.

``make fuzz`` draws more of them, by VR_KERNELS_FUZZ.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from python_tests.fuzz import record
from python_tests.fuzz._calls import TARGETS, Target
from python_tests.fuzz._outcomes import Verdicts
from python_tests.fuzz._spoiling import right_calls, spoilt_calls

MARGIN = 4 << 30  # bytes that a call may ask for; more is refused at once, where the machine would be filled

long = int(os.environ.get("VR_KERNELS_FUZZ", "0"))
drawn = hypothesis.settings(
    max_examples=long or 20,
    derandomize=not long,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
)
over_targets = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@pytest.fixture(scope="module", autouse=True)
def _little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MARGIN, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@over_targets
def test_right_calls_give_what_the_reference_gives(target: Target) -> None:
    verdicts = Verdicts()

    @drawn
    @hypothesis.given(st.data())
    def fuzz(data: st.DataObject) -> None:
        call = data.draw(right_calls(target))
        verdicts.judge(target, call, must_run=True, gradients=data.draw(st.booleans()))

    fuzz()
    verdicts.check()
    print(target.name, dict(verdicts.counts))
    record.add("right calls", target.name, verdicts.counts)


@over_targets
def test_spoilt_calls_give_a_result_or_a_refusal_in_words(target: Target) -> None:
    verdicts = Verdicts()

    @drawn
    @hypothesis.given(st.data())
    def fuzz(data: st.DataObject) -> None:
        verdicts.judge(target, data.draw(spoilt_calls(target)))

    fuzz()
    print(target.name, dict(verdicts.counts))
    record.add("spoilt calls", target.name, verdicts.counts)
