"""Linear maps: what one takes, which may be read and merged, and the refusal of what is neither."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vr_kernels.nn._sizes import check_tensor


def check_input(operation: str, name: str, value: Any, linear: nn.Module) -> None:
    """Refuse in a sentence what ``linear`` would refuse in torch's words: another width or dtype than its weight's.

    Only a plain one is known to refuse them: an adapted or quantised one may convert its input, and autocast does.
    """
    check_tensor(operation, name, value)
    if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:
        return
    if value.shape[-1:] != (linear.in_features,):
        raise ValueError(
            f"{operation}: {name} has shape {tuple(value.shape)}; its last size must be {linear.in_features}"
        )
    if value.dtype != linear.weight.dtype and not torch._C._is_any_autocast_enabled():
        raise TypeError(
            f"{operation}: {name} is {value.dtype}, the module's weights are {linear.weight.dtype}; "
            "convert one of them (module.to(dtype)), or compute under torch.autocast"
        )


def plain_linear(operation: str, name: str, module: nn.Module) -> nn.Linear:
    """``module`` itself if its weight is the whole of its function; an adapted or quantised one is never read past."""
    # Linear's subclasses (LoRA, quantised) and parametrised modules (a generated class) do more than their weight says.
    if type(module) not in (nn.Linear, NonDynamicallyQuantizableLinear):
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
