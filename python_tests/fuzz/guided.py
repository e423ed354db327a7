"""A coverage-guided fuzzer at the doors for files: ``python -m python_tests.fuzz.guided DOOR --seconds 60``.

Without a door it lists them. It ends at the first fault, with its traceback and the bytes that lead to it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter

FOLLOWED = ["vr_kernels.nn", "vr_kernels.models", "vr_kernels.integrations"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", nargs="?")
    parser.add_argument("--seconds", type=int, default=60)
    chosen = parser.parse_args()

    import torch  # before atheris follows imports, as all else that is not looked at
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if chosen.door is None:
        from python_tests.fuzz._doors import DOORS

        print("\n".join(DOORS))
        return
    import atheris

    with atheris.instrument_imports(include=FOLLOWED):
        from python_tests.fuzz import record
        from python_tests.fuzz._doors import DOORS
    door, verdicts = DOORS[chosen.door], Counter[str]()

    def tried(data: bytes) -> None:
        verdicts[door.verdict(data)] += 1
        if time.monotonic() > end:
            print(f"{chosen.door}: {verdicts.total()} files in {chosen.seconds} s, {dict(verdicts)}", flush=True)
            record.add("files", chosen.door, verdicts)
            os._exit(0)  # libFuzzer takes every other way out for a fault

    kept = f"-artifact_prefix={tempfile.gettempdir()}/"
    atheris.Setup([sys.argv[0], "-max_len=256", "-verbosity=0", kept], tried)
    door.verdict(bytes(8))  # loads what every file needs
    end = time.monotonic() + chosen.seconds
    atheris.Fuzz()


if __name__ == "__main__":
    main()
