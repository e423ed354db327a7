"""Triton's interpreter, quicker: it makes the type of a block anew for every operation, and looks up numpy's for it in
a dict that it builds each time (triton 3.6 and 3.7), which is much of the time here. Each is made once instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _remembered(make: Any) -> Any:
    """``block_type.__init__`` that gives a type of a known element and shape the attributes of the first of them."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(block: tl.block_type, element_ty: tl.dtype, shape: Sequence[Any]) -> None:
        key = (str(element_ty), *map(tl.core._unwrap_if_constexpr, shape))
        if key not in known:
            make(block, element_ty, shape)
            known[key] = dict(vars(block))
        vars(block).update(known[key])

    return init


def _by_element(lookup: Any) -> Any:
    """``_get_np_dtype`` by the element's type, for a block's cannot be hashed."""
    of_number = functools.cache(lookup)

    def of_type(of: tl.dtype) -> np.dtype[Any]:
        return np.dtype(np.uint64) if of.scalar.is_ptr() else of_number(of.scalar)

    return of_type


def install() -> None:
    """Patch the interpreter of this process."""
    tl.block_type.__init__ = _remembered(tl.block_type.__init__)
    interpreter._get_np_dtype = _by_element(interpreter._get_np_dtype)
