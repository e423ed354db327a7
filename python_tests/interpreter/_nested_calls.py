"""Triton's interpreter without its greatest waste of time.

It replaces all of triton.language's builtins again for every call of one jitted function by another, although they stay
replaced until the launch ends: 40 % of these tests' time (triton 3.6 and 3.7). Here once for each module that calls.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

_patched: set[int] = set()


def _call(function: interpreter.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    module = id(function.fn.__globals__)
    if module not in _patched:
        interpreter._patch_lang(function.fn)
        _patched.add(module)
    return function.rewrite()(*args, **kwargs)


def install() -> None:
    """Patch the interpreter of this process."""
    interpreter.InterpretedFunction.__call__ = _call
