"""Documents from outside, spoilt by bytes, which hypothesis draws and a coverage-guided fuzzer changes."""

from __future__ import annotations

import copy
import json
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 24, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e-300, float("nan"), float("inf"),
    "", "x" * 5000, "\ud800", "a\0b", "../..", "/", "1e999", "<image>", "none", "mean", "gpt", "human",
    [], [1], [3, 3], [0, 0], [[1]], [None], ["x"], {}, {"a": 1}, {"": []}, {"0": {"1": {"2": {}}}},
)  # fmt: skip


class Tape:
    """Bytes as a row of choices; zeros once they have run out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        number = 0
        for _ in range(1 if limit <= 256 else 2):
            number = number << 8 | (self.data[self.place] if self.place < len(self.data) else 0)
            self.place += 1
        return number % limit

    def rest(self) -> bytes:
        return self.data[self.place :]


def spoilt_text(text: bytes, data: bytes) -> bytes:
    """The first byte chooses: changed as a JSON document, changed as bytes, or thrown away for the other bytes."""
    tape = Tape(data)
    way = tape.below(8)
    if way == 0:
        return tape.rest()
    if way == 1:
        return b"[" * 256 * tape.below(1000) + tape.rest()
    if way == 2:
        return spoilt_bytes(text, tape)
    return json.dumps(spoilt(json.loads(text), tape)).encode()


def spoilt_bytes(text: bytes, tape: Tape) -> bytes:
    """Up to four places cut out, overwritten, or with bytes put in."""
    for _ in range(1 + tape.below(4)):
        begin, length = tape.below(max(len(text), 1)), tape.below(16)
        inserted = bytes(tape.below(256) for _ in range(tape.below(4)))
        text = text[:begin] + inserted + text[begin + length * tape.below(2) :]
    return text[: tape.below(len(text) + 1)] if tape.below(4) == 3 else text


def spoilt(document: Any, tape: Tape) -> Any:
    """Up to four values replaced, left out, put twice or added, anywhere in the document."""
    document = copy.deepcopy(document)
    for _ in range(1 + tape.below(4)):
        document = _changed(document, tape)
    return document


def _changed(value: Any, tape: Tape) -> Any:
    if not isinstance(value, (dict, list)) or not value or tape.below(8) == 7:
        return _other(value, tape)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[tape.below(len(keys))]
    what = tape.below(8)
    if what == 0:
        del value[key]
    elif what == 1 and isinstance(value, dict):
        value[("layers", "model_type", "", "a" * 300)[tape.below(4)]] = _other(None, tape)
    elif what == 1:
        value.append(value[key])
    else:
        value[key] = _changed(value[key], tape)
    return value


def _other(value: Any, tape: Tape) -> Any:
    if tape.below(4) == 0:
        return [value]
    return copy.deepcopy(VALUES[tape.below(len(VALUES))])
