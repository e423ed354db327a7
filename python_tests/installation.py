"""Installs a wheel of dist into clean environments and tries it there: with torch alone, then with its extras.

python3.12 python_tests/installation.py --torch 2.13.0

The environments have the Python that runs this, which needs nothing but its standard library. pip takes torch from
where its configuration says: on a machine without a GPU, name an index of CPU wheels in PIP_EXTRA_INDEX_URL.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, **variables: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **variables})


def smoke(python: Path, **variables: str) -> None:
    run(python, "-I", ROOT / "python_tests" / "smoke.py", OMP_WAIT_POLICY="passive", **variables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="2.13.0", help="a version of torch")
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="the folder that has the wheel")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="vr-kernels-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        install = (python, "-m", "pip", "install", "--quiet")
        of_this_torch = f"torch=={arguments.torch}"
        run(*install, of_this_torch)
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "triton")  # which CUDA builds of torch bring along
        run(*install, "--no-index", "--no-deps", "--find-links", arguments.wheels.resolve(), "vr-kernels")

        print(f"Python {platform.python_version()}, torch {arguments.torch}, and nothing else", flush=True)
        smoke(python)
        print(
            f"Python {platform.python_version()}, torch {arguments.torch}, and the extras bench and triton", flush=True
        )
        run(*install, of_this_torch, "vr-kernels[bench,triton]")  # the installed one: pip does not look for a newer
        smoke(python, TRITON_INTERPRET="1")


if __name__ == "__main__":
    main()
