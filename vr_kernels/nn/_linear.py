"""Linear maps: what one takes, which may be read and merged, and the refusal of what is neither."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vr_kernels.nn._sizes import check_tensor

# Linear's other subclasses (LoRA, quantised) and parametrised ones (a generated class) do more than their weight says.
PLAIN = (nn.Linear, NonDynamicallyQuantizableLinear)


def check_input(operation: str, name: str, value: Any, linear: nn.Module) -> None:
    """Refuse in a sentence what ``linear`` would refuse in torch's words: another width or dtype than its weight's.

    Only a plain one is known to refuse them: an adapted or quantised one may convert its input, and autocast does.
    """
    check_tensor(operation, name, value)
    if _is_plain(linear) and value.shape[-1:] != (linear.in_features,):
        raise ValueError(
            f"{operation}: {name} has shape {tuple(value.shape)}; its last size must be {linear.in_features}"
        )
    check_dtype(operation, name, value, linear)


def check_dtype(operation: str, name: str, value: Tensor, linear: nn.Module | None) -> None:
    """The dtype alone, as ``check_input``: for what comes to ``linear`` in another width, or goes out where it does."""
    if not _is_plain(linear):
        return
    dtype = linear.weight.dtype
    # Autocast leaves float64 as it is.
    cast = torch._C._is_any_autocast_enabled() and torch.float64 not in (value.dtype, dtype)
    if value.dtype != dtype and not cast:
        raise TypeError(
            f"{operation}: {name} is {value.dtype}, the module's weights are {dtype}; "
            "convert one of them (module.to(dtype)), or compute under torch.autocast"
        )


def _is_plain(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    return type(module) in PLAIN and type(module.weight) is nn.Parameter  # type: ignore[union-attr]


def plain_linear(operation: str, name: str, module: nn.Module) -> nn.Linear:
    """``module`` itself if its weight is the whole of its function; an adapted or quantised one is never read past."""
    if type(module) not in PLAIN:
        raise TypeError(
            f"{operation}: {name} is a {type(module).__name__}; it must be a plain torch.nn.Linear "
            "(merge or remove what adapts it first)"
        )
    if type(module.weight) is not nn.Parameter:
        kind = type(module.weight).__name__
        raise TypeError(
            f"{operation}: {name}.weight is a {kind}; it must be a plain Parameter (gather or dequantise it first)"
        )
    assert isinstance(module, nn.Linear)
    return module


def compose(operation: str, name: str, first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One Linear that is ``second(first(x))``, its products made in float64."""
    if first.out_features != second.in_features:
        raise ValueError(
            f"{operation}: {name} does not fit: {first.out_features} features come out of one Linear, "
            f"{second.in_features} go into the next"
        )
    weight = second.weight
    bias = None if second.bias is None else second.bias.double()
    if first.bias is not None:
        carried = weight.double() @ first.bias.double()
        bias = carried if bias is None else bias + carried
    merged = nn.Linear(
        first.in_features, second.out_features, bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        merged.weight.copy_(weight.double() @ first.weight.double())
        if bias is not None:
            merged.bias.copy_(bias)
    return merged


def scaled(linear: nn.Linear, factor: Tensor) -> nn.Linear:
    """One Linear that is ``factor * linear(x)``."""
    result = copy.deepcopy(linear)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_(parameter.double() * factor)
    return result
