"""Builds vr_kernels._C with CMake; everything else about the package stands in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError

ROOT = Path(__file__).resolve().parent

# Options of CMakeLists.txt that a user sets in the environment. Empty is each one's default.
OPTIONS = ("VR_KERNELS_CUDA", "VR_KERNELS_CUDA_ARCHITECTURES", "VR_KERNELS_SANITIZE")


def program(name: str) -> str:
    """The program on PATH, else beside this Python: a build without isolation may use an environment not activated."""
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise ExecError(f"vr_kernels: {name} is not installed; `pip install {name}`, or build with isolation")
    return path


def run(*command: str | Path) -> None:
    """A step of CMake, whose own words stand above where it fails."""
    if subprocess.call(command) != 0:
        raise CompileError("vr_kernels: the native code was not built; what CMake said above tells why")


class CMakeBuild(build_ext):
    """Configures, compiles and installs the CMake project where setuptools expects the extension module."""

    def build_extension(self, ext: Extension) -> None:
        options = {name: os.environ.get(name, "") for name in OPTIONS}
        sanitizer = options["VR_KERNELS_SANITIZE"]
        variant = f"-sanitizer-{sanitizer}" if sanitizer else ""
        build = ROOT / "build" / f"native{variant}"
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent

        # The objects are kept between builds, so that an editable install compiles only what changed, and another
        # Python only the bindings. The cache is not: it holds what was found last time, and paths into an isolated
        # environment that is gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        settings = {
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "VR_KERNELS_VERSION": self.distribution.get_version(),
            **options,
        }
        definitions = [f"-D{name}={value}" for name, value in settings.items()]
        cmake_args = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        cmake = program("cmake")
        run(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *definitions, *cmake_args)
        run(cmake, "--build", build)
        run(cmake, "--install", build, "--prefix", destination)


setup(ext_modules=[Extension("vr_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
