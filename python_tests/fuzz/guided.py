"""A coverage-guided fuzzer at the doors for outside files: ``python -m python_tests.fuzz.guided DOOR --seconds 60``.

Without a door it lists them. It ends at the first fault, with its traceback and the bytes that lead to it.
"""

from __future__ import annotations

import argparse
import atexit
import sys
import tempfile
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
        from python_tests.fuzz._doors import DOORS
    door, verdicts = DOORS[chosen.door], Counter[str]()

    def tried(data: bytes) -> None:
        verdicts[door.verdict(data)] += 1

    atexit.register(lambda: print(f"{chosen.door}: {verdicts.total()} files in {chosen.seconds} s, {dict(verdicts)}"))
    kept = f"-artifact_prefix={tempfile.gettempdir()}/"
    atheris.Setup([sys.argv[0], f"-max_total_time={chosen.seconds}", "-max_len=256", "-verbosity=0", kept], tried)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
