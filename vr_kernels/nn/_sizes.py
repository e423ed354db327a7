"""What modules are built with and the widths of what they are given: checks that several of them share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.ops._arguments import Arguments, signatures


def check_positive(operation: str, **sizes: Any) -> None:
    """Refuse what is no int, or none of at least 1."""
    arguments = Arguments(operation)
    for name, size in sizes.items():
        arguments.integer(name, size, 1)


def is_positive_number(value: object) -> bool:
    """Whether it is a number above zero that a float can hold: what an epsilon or a base of positions may be."""
    # Compared, since math.isfinite fails at an integer that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def check_positive_number(operation: str, name: str, value: Any, *, optional: bool = False) -> None:
    if not (is_positive_number(value) or (optional and value is None)):
        raise ValueError(f"{operation}: {name} is {value!r}; it must be a positive number" + " or None" * optional)


def level_widths(operation: str, name: str, value: Any) -> tuple[int, ...]:
    """One positive width a level; an int alone is one level."""
    given = (value,) if isinstance(value, int) else value
    if (
        not isinstance(given, Sequence)
        or isinstance(given, (str, bytes))
        or any(isinstance(width, bool) or not isinstance(width, int) for width in given)
    ):
        raise TypeError(f"{operation}: {name} is {value!r}; it must be an int or a sequence of one int a level")
    widths = tuple(given)
    if not widths or min(widths) < 1:
        raise ValueError(f"{operation}: {name} is {widths}; it must hold one positive width a level")
    return widths


def head_width(operation: str, width_name: str, width: int, num_heads: int, head_dim: int | None) -> int:
    """``head_dim``, or what each of the heads has of ``width`` where it is None."""
    if head_dim is None and width % num_heads != 0:
        raise ValueError(
            f"{operation}: num_heads is {num_heads}, {width_name} is {width}; "
            f"give head_dim, or a num_heads that divides {width_name}"
        )
    head_dim = width // num_heads if head_dim is None else head_dim
    check_positive(operation, head_dim=head_dim)
    return head_dim


def levels_of(
    operation: str, features: Tensor | Sequence[Tensor], dims: tuple[int, ...], dims_name: str = "feature_dims"
) -> list[Tensor]:
    """One tensor a level, of the widths ``dims``."""
    levels = as_levels(operation, features)
    widths = tuple(width for level in levels for width in level.shape[-1:])
    if widths != dims:
        raise ValueError(
            f"{operation}: features have widths {widths}, {dims_name} is {dims}; give one tensor a level, in that "
            "order, channels last"
        )
    return levels


def as_levels(operation: str, features: Any) -> list[Tensor]:
    """One tensor a level; a tensor alone is one level."""
    levels = [features] if isinstance(features, Tensor) or not isinstance(features, Iterable) else list(features)
    for i, level in enumerate(levels):
        check_tensor(operation, "features" if level is features else f"features[{i}]", level)
    return levels


def check_tensor(operation: str, name: str, value: Any) -> None:
    """For what a module looks into before an operator does: refuse what is no dense tensor, in an operator's words."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        Arguments(operation).tensor(name, *signatures(value))


def check_type(operation: str, name: str, value: Any, kind: type, called: str | None = None) -> None:
    """For any other object; ``called`` is how a user writes ``kind``, where that is not its own name."""
    if not isinstance(value, kind):
        got = "None" if value is None else f"a {type(value).__name__}"
        raise TypeError(f"{operation}: {name} is {got}; it must be a {called or kind.__name__}")


def check_module(operation: str, name: str, value: Any) -> None:
    check_type(operation, name, value, nn.Module, "torch.nn.Module")
