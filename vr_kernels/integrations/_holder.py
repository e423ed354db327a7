"""The part of a model of transformers that holds its encoder, projector and language model, found by what it has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from vr_kernels.nn._sizes import check_module


def find_holder(operation: str, model: nn.Module, child: str, types: Collection[str]) -> Any:
    """The one module in ``model``, or itself, with a child of that name; its configuration is of one of ``types``."""
    check_module(operation, "model", model)
    holders = [module for module in model.modules() if child in module._modules]
    found = [getattr(getattr(module, "config", None), "model_type", None) for module in holders]
    if len(holders) != 1 or found[0] not in types:
        kind = f"of type {found[0]!r}" if found and found[0] is not None else "of no known type"
        raise ValueError(
            f"{operation}: model is a {type(model).__name__} {kind}; it must be or hold one of the types "
            f"{', '.join(types)}"
        )
    return holders[0]
