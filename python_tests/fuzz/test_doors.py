"""Files from outside: whatever is in them they are taken or refused in words. ``make fuzz`` tries many more."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from python_tests.fuzz._doors import DOORS
from python_tests.fuzz.test_operators import drawn


@pytest.mark.parametrize("name", DOORS)
def test_a_spoilt_file_is_taken_or_refused_in_words(name: str) -> None:
    @drawn
    @hypothesis.given(st.binary(min_size=1, max_size=64))
    def fuzz(data: bytes) -> None:
        DOORS[name].verdict(data)

    fuzz()


@pytest.mark.parametrize("name", DOORS)
def test_a_file_that_was_not_spoilt_is_taken(name: str) -> None:
    # Bytes that change the document as bytes, once, by none.
    data = b"\0" * 8 if name == "blocks" else b"\2"
    assert DOORS[name].verdict(b"\0" + data if name == "conversations" else data) == "taken"
