"""The compiled module ``vr_kernels._C``, loaded when first needed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vr_kernels._version import __version__
from vr_kernels.ops._dispatch import Request, refuses_tensors
from vr_kernels.ops._native_file import defect

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

REMEDY = "reinstall it with this Python: pip install --force-reinstall --no-deps vr-kernels (in a clone: -e .)"


@functools.cache
def _import() -> tuple[Any, str | None]:
    try:
        reason = defect(importlib.util.find_spec("vr_kernels._C"), Path(__file__).parents[1])
        if reason is not None:
            return None, f"vr_kernels._C {reason}; {REMEDY}"
        loaded = importlib.import_module("vr_kernels._C")
    except (ImportError, OSError) as error:
        if "VR_KERNELS_CPU_ISA" in str(error):  # the module is whole: it refuses what the environment asks of it
            raise ValueError(str(error)) from None
        return None, f"vr_kernels._C cannot be imported ({error}); {REMEDY}"
    built = loaded.build_info()["version"]
    if built != __version__:
        return None, f"vr_kernels._C is of version {built}, and vr_kernels of {__version__}; {REMEDY}"
    return loaded, None


def module() -> Any:
    """``vr_kernels._C``; raises ImportError in words where there is none."""
    loaded, reason = _import()
    if loaded is None:
        raise ImportError(reason)
    return loaded


def unavailable() -> str | None:
    """Why there is no ``_C``, or None. A graph that is traced takes the answer of its first trace."""
    return _import()[1]


# What torch.compiler.assume_constant_result does; calling it would import the compiler along with this package.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuses_cpu(request: Request) -> str | None:
    """Why the CPU kernels cannot run a call."""
    return refuses_tensors(request, "CPU", ["cpu"]) or unavailable()


def index_fits(index: Tensor, low: int, high: int, *, distinct: bool = False) -> bool:
    """Whether all numbers of a CPU index are known to be in [low, high), and those from 0 on distinct.

    False where ``_C`` cannot tell, too: who must know looks closer.
    """
    if unavailable() is not None or not index.is_contiguous():
        return False
    is_64bit = index.dtype == torch.int64
    fits: bool = module().index_fits(index.data_ptr(), index.numel(), is_64bit, low, high, distinct)
    return fits


def address(tensor: Tensor | None) -> int:
    """Of the first element; 0 for none. Whoever calls keeps the tensor alive."""
    return 0 if tensor is None else tensor.data_ptr()
