"""Samples that cannot be trained on: an error that names one, and a file that records them."""

from __future__ import annotations

import json
from pathlib import Path


class BadSampleError(ValueError):
    """A sample that cannot be trained on. Its text names the sample and says what is wrong, in one sentence."""

    def __init__(self, message: str) -> None:
        # A worker of torch's DataLoader hands an error on as the text of its traceback: its last line is the sentence.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class BadSamples:
    """A file of JSON lines, one for each bad sample met, which all workers, processes and resumed runs add to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     met = BadSamples(Path(folder) / "bad_samples.jsonl")
    ...     met.add(7, "sample 7: its image a.png is missing")
    ...     met.add(7, "sample 7: its image a.png is missing")
    ...     met.count()
    1
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def add(self, index: int, reason: str) -> None:
        # One short write to a file opened for appending: lines of several processes do not mix.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"index": index, "reason": reason}) + "\n")

    def count(self) -> int:
        """How many different samples; each epoch and each process may have met the same one."""
        if not self.path.exists():
            return 0
        with self.path.open(encoding="utf-8") as file:
            return len({json.loads(line)["index"] for line in file if line.endswith("\n")})
