"""Argument checks that every operator shares: one sentence a fault, naming the argument, what it got, what it may be.

Checks see *signatures*, never data: so a call that repeats an earlier one's signature skips them (``remember``), and
they run the same way on fake tensors.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from vr_kernels.ops._settings import SETTINGS

P = ParamSpec("P")
R = TypeVar("R")

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Signature(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def signatures(*values: Any) -> tuple[Any, ...]:
    """What the checks need to know of each argument: a dense tensor's signature, another's layout, None, or the type of
    anything else."""
    return tuple(
        [
            None
            if value is None
            else type(value)
            if not isinstance(value, Tensor)
            else (value.shape, value.dtype, value.device)
            if value.layout is torch.strided and not value.is_nested
            else value.layout
            for value in values
        ]
    )


def remember(check: Callable[P, R]) -> Callable[P, R]:
    """Run ``check`` once per distinct set of signatures; each time in traced code, where sizes are symbolic."""
    # Typed: 2.0 equals 2 and True equals 1, but what allows the one may refuse the other.
    remembered = functools.lru_cache(maxsize=1024, typed=True)(check)

    @functools.wraps(check)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return check(*args, **kwargs)
        try:
            return remembered(*args, **kwargs)  # type: ignore[arg-type]
        except TypeError:
            # Unhashable: a symbolic size or a wrong type. A TypeError of the check's own is raised again here.
            return check(*args, **kwargs)

    return run


def equal(shape: Sequence[int], other: Sequence[int]) -> bool:
    # Size by size: a compiler that traces this compares symbolic sizes, not tuples of them.
    return len(shape) == len(other) and all(a == b for a, b in zip(shape, other, strict=True))


class Arguments:
    """The checks of one operator's call; every message starts with the operator's name.

    ``query`` names the argument whose dtype and device the others share.
    """

    def __init__(self, operator: str, query: str = "query") -> None:
        self.operator = operator
        self.query = query

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.operator}: {message}")

    def tensor(self, name: str, value: Any) -> Signature:
        if isinstance(value, torch.layout):
            kind = "a nested" if value == torch.strided else f"a {value}"
            raise TypeError(f"{self.operator}: {name} is {kind} tensor; it must be a dense one, torch.strided")
        if value is None or isinstance(value, type):
            got = "None" if value is None else f"a {value.__name__}"
            raise TypeError(f"{self.operator}: {name} is {got}; it must be a torch.Tensor")
        return Signature(tuple(value[0]), value[1], value[2])

    def rank(self, name: str, got: Signature, allowed: dict[int, str]) -> None:
        if len(got.shape) not in allowed:
            forms = " or ".join(allowed.values())
            raise self.error(f"{name} has shape {got.shape}; it must be {forms}")

    def floating(self, name: str, got: Signature) -> None:
        if got.dtype not in FLOATING:
            raise TypeError(f"{self.operator}: {name} is {got.dtype}; it must be float32, bfloat16, float16 or float64")

    def same_device(self, name: str, got: Signature, query: Signature) -> None:
        if got.device != query.device:
            raise self.error(
                f"{name} is on {got.device}, {self.query} is on {query.device}; all tensors must share one device"
            )

    def same_dtype(self, name: str, got: Signature, query: Signature) -> None:
        if got.dtype != query.dtype:
            raise TypeError(
                f"{self.operator}: {name} is {got.dtype}, {self.query} is {query.dtype}; they must share one dtype"
            )

    def companion(self, name: str, value: Any, query: Signature) -> Signature:
        """A tensor that shares the query's dtype and device."""
        got = self.tensor(name, value)
        self.same_device(name, got, query)
        self.same_dtype(name, got, query)
        return got

    def auxiliary(self, name: str, value: Any, query: Signature, shapes: Sequence[tuple[int, ...]]) -> None:
        """An optional tensor in the query's dtype or float32, of one of ``shapes``."""
        if value is None:
            return
        got = self.tensor(name, value)
        self.same_device(name, got, query)
        if got.dtype not in (query.dtype, torch.float32):
            raise TypeError(
                f"{self.operator}: {name} is {got.dtype}; "
                f"it must be {query.dtype} (the {self.query}'s) or torch.float32"
            )
        if not any(equal(got.shape, shape) for shape in shapes):
            allowed = " or ".join(f"{shape}" for shape in shapes)
            raise self.error(f"{name} has shape {got.shape}; it must be {allowed}")

    def mask(self, name: str, value: Any, query: Signature, shape: tuple[int, ...]) -> None:
        """An optional bool tensor of ``shape``, True where something is present."""
        if value is None:
            return
        got = self.tensor(name, value)
        self.same_device(name, got, query)
        if got.dtype != torch.bool:
            raise TypeError(f"{self.operator}: {name} is {got.dtype}; it must be torch.bool, True where present")
        if not equal(got.shape, shape):
            raise self.error(f"{name} has shape {got.shape}; it must be {shape}")

    def index(self, name: str, value: Any, query: Signature) -> Signature:
        """An int32 or int64 tensor on the query's device."""
        got = self.tensor(name, value)
        self.same_device(name, got, query)
        if got.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{self.operator}: {name} is {got.dtype}; it must be int32 or int64")
        return got

    def heads(self, query: Signature, key: Signature) -> None:
        """The last two sizes, heads and width, of queries and of their keys."""
        (heads, width), (kv_heads, key_width) = query.shape[-2:], key.shape[-2:]
        if heads == 0 or width == 0:
            raise self.error(f"{self.query} has {heads} heads of width {width}; both must be at least 1")
        if key_width != width:
            raise self.error(f"key has width {key_width}, {self.query} has {width}; they must be equal")
        if kv_heads == 0 or heads % kv_heads != 0:
            raise self.error(
                f"key has {kv_heads} heads, {self.query} has {heads}; the key's must divide the {self.query}'s"
            )

    def number(self, name: str, value: Any, *, optional: bool = True, least: float = -math.inf) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
            raise TypeError(f"{self.operator}: {name} is {value!r}; it must be a number" + " or None" * optional)
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise self.error(f"{name} is an integer of {value.bit_length()} bits; it must be one that a float can hold")
        if torch.compiler.is_compiling() or isinstance(value, torch.SymFloat):  # whose values are not known yet
            return
        if not math.isfinite(value):
            raise self.error(f"{name} is {value}; it must be finite")
        if value < least:
            raise self.error(f"{name} is {value}; it must be at least {least}")

    def scale(self, value: Any, width: int) -> float:
        """What scores are multiplied by: 1/sqrt(width) where ``value`` is None, and a float where it is an integer,
        which no sum of tensors and no kernel need tell apart."""
        self.number("scale", value)
        if value is None:
            return 1 / math.sqrt(width)
        return float(value) if isinstance(value, int) else value

    def integer(self, name: str, value: Any, least: int) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{self.operator}: {name} is {value!r}; it must be an int")
        if value < least:
            raise self.error(f"{name} is {value}; it must be at least {least}")

    def share(self, name: str, value: Any) -> None:
        """A number from 0 to 1."""
        self.number(name, value, optional=False)
        if value < 0 or value > 1:
            raise self.error(f"{name} is {value}; it must be from 0 to 1")

    def device(self, name: str, value: Any) -> None:
        """Where something is to be made; asks torch, which alone knows what it can use."""
        if value is None or torch.compiler.is_compiling():
            return
        try:
            torch.empty(0, device=value)
        except (AssertionError, RuntimeError, TypeError, ValueError) as reason:
            raise self.error(f"{name} is {value!r}; torch cannot use it: {str(reason).partition(chr(10))[0]}") from None

    def flag(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{self.operator}: {name} is {value!r}; it must be a bool")

    def choice(self, name: str, value: Any, allowed: Sequence[str | None]) -> None:
        if not (value is None or isinstance(value, str)) or value not in allowed:
            words = " or ".join(["None" if one is None else f'"{one}"' for one in allowed])
            raise self.error(f"{name} is {value!r}; it must be {words}")

    def levels(self, name: str, values: Sequence[Any], query: Signature | None = None) -> list[Signature]:
        """Levels, which share all sizes but the last; None where the first level is itself what the others go by."""
        if not values:
            raise self.error(f"{name} is an empty sequence; it must hold at least one level")
        first_name = name if len(values) == 1 else f"{name}[0]"
        if query is None:
            query = self.tensor(first_name, values[0])
            self.floating(first_name, query)
        first = self.companion(first_name, values[0], query)
        levels = [first]
        for i, value in enumerate(values[1:], start=1):
            level = self.companion(f"{name}[{i}]", value, query)
            if level.shape[:-1] != first.shape[:-1]:
                raise self.error(
                    f"{name}[{i}] has grid {level.shape[:-1]}, {name}[0] has {first.shape[:-1]}; "
                    "all levels must share one grid"
                )
            levels.append(level)
        for i, level in enumerate(levels):
            if not level.shape or level.shape[-1] == 0:
                level_name = name if len(values) == 1 else f"{name}[{i}]"
                raise self.error(f"{level_name} has shape {level.shape}; its width, the last size, must be at least 1")
        return levels


def is_readable(index: Tensor) -> bool:
    """Whether looking at an index's values costs nothing and gives an answer: plain CPU tensors in untraced code.

    With VR_KERNELS_CHECK, on other devices too, where it waits for all that was launched before.
    """
    if torch.compiler.is_compiling() or type(index) is not Tensor or index.is_meta:
        return False
    if index.device.type != "cpu" and SETTINGS.check is None:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(index)


def refuse_outside(operator: str, name: str, index: Tensor, low: int, high: int, allowed: str) -> None:
    """Raise for the first number of a readable index that is not in [low, high); ``allowed`` says what it may be."""
    if index.numel() == 0:
        return
    least, most = torch.aminmax(index)
    if int(least) >= low and int(most) < high:
        return
    place = ((index < low) | (index >= high)).nonzero()[0].tolist()
    at = ", ".join(map(str, place))
    raise ValueError(f"{operator}: {name}[{at}] is {int(index[tuple(place)])}; it must be {allowed}")


def check_index_values(operator: str, window_index: Tensor | None, rows: int) -> None:
    """Refuse a window_index that points outside the feature rows. Reads data: plain CPU tensors, untraced code only."""
    if window_index is not None and is_readable(window_index):
        allowed = f"-1 (absent) or a feature row in [0, {rows})"
        refuse_outside(operator, "window_index", window_index, -1, rows, allowed)
