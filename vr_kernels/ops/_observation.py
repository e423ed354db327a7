"""Calls that are logged, and compared with the reference: what VR_KERNELS_LOG and VR_KERNELS_CHECK ask for.

The public functions are replaced by observed ones when the package is imported; without these variables nothing is, and
nothing is spent.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops._dispatch import Explanation, functions, register
from vr_kernels.ops._settings import Settings

# The error rule allows twice the error of stock PyTorch over several draws; one call is no average.
FACTOR = 4.0
# Fewer numbers than this may all lie close to the truth by luck: then they are allowed a rounding of their own.
FEW = 64
# Of float64 there is no truth to compare with: what is computed in less errs by 1e-8.
FLOAT64 = 2.0**-40

LOGGER = logging.getLogger("vr_kernels")


class ReferenceMismatch(AssertionError):
    """A result that is further from float64 than the error rule allows; its inputs are saved."""


def observed(settings: Settings) -> dict[str, Callable[..., Any]]:
    """Every operator's public function by name, observed."""
    if settings.log is not None:
        stderr = settings.log == "stderr"
        handler = logging.StreamHandler(sys.stderr) if stderr else logging.FileHandler(settings.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False  # a program that configures logging would print each line twice
    watched = {}
    for function, operator in functions().items():
        watched[function.__name__] = _observe(function, operator.explain_call, settings)
        register(watched[function.__name__], operator)
    return watched


def _observe(
    function: Callable[..., Any], explain: Callable[..., Explanation], settings: Settings
) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        call = signature.bind(*args, **kwargs).arguments
        explanation = explain(**call)
        if settings.log is not None:
            LOGGER.info(_line(call, explanation))
        if settings.check is not None and explanation.chosen != "reference" and _is_plain(call):
            _compare(function, call, result, Path(settings.check), explanation.chosen)
        return result

    return run


def _line(call: Mapping[str, Any], explanation: Explanation) -> str:
    arguments = ", ".join(f"{name}={_described(value)}" for name, value in call.items() if value is not None)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in explanation.reasons.items())
    return f"{explanation.operator}({arguments}) -> {explanation.chosen} [{reasons}]"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape)} strides {tuple(value.stride())} on {value.device}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_described, value)) + "]"
    return repr(value)


def _is_plain(call: Mapping[str, Any]) -> bool:
    """Whether the values are numbers that a second call may read: no fake, traced or wrapped tensors, none without
    memory, no autocast."""
    tensors = [tensor for value in call.values() for tensor in _tensors(value)]
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch.is_autocast_enabled(tensor.device.type)
        for tensor in tensors
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, part) for part in value) if isinstance(value, (list, tuple)) else value


@torch.no_grad()
def _compare(function: Callable[..., Any], call: Mapping[str, Any], result: Any, folder: Path, backend: str) -> None:
    plain = {name: value for name, value in call.items() if name != "backend"}
    stock = function(**plain, backend="reference")
    widened = {name: _mapped(_widened, value) for name, value in plain.items()}
    exact = function(**widened, backend="reference")
    for number, (ours, theirs, truth) in enumerate(
        zip(_tensors(result), _tensors(stock), _tensors(exact), strict=True)
    ):
        fault = _fault(ours, theirs, truth)
        if fault is not None:
            saved = _save(function.__name__, plain, backend, folder)
            raise ReferenceMismatch(
                f"{function.__name__}: output {number} of backend {backend!r} {fault}; run {saved} to see it again"
            )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _fault(ours: Tensor, stock: Tensor, exact: Tensor) -> str | None:
    """What is wrong with a result, or None."""
    if ours.shape != exact.shape:
        return f"has shape {tuple(ours.shape)}, the reference {tuple(exact.shape)}"
    if not ours.is_floating_point():
        return None if torch.equal(ours, stock) else "differs from the reference"
    finite = exact.isfinite()
    if not torch.equal(ours.double()[~finite].nan_to_num(), exact[~finite].nan_to_num()):
        return "is not finite where the reference is, or the other way round"
    ours, stock, exact = ours[finite], stock[finite], exact[finite]
    rounding = exact.to(ours.dtype)

    def error(tensor: Tensor) -> float:
        return float((tensor.double() - exact).square().mean().sqrt()) if tensor.numel() > 0 else 0.0

    size = error(torch.zeros_like(exact))
    # Equal numbers are all rounded alike, however many there are: float32 has only the roundings of its sums.
    lucky = ours.numel() < FEW or ours.dtype == torch.float32
    luck = FLOAT64 if ours.dtype == torch.float64 else torch.finfo(ours.dtype).eps if lucky else 0.0
    measured, allowed = error(ours), FACTOR * max(error(stock), error(rounding), luck * size)
    if measured <= allowed:  # False for NaN as well
        return None
    return f"is {measured:.3g} (root mean square) from float64, where {allowed:.3g} is allowed"


def _save(operator: str, call: Mapping[str, Any], backend: str, folder: Path) -> Path:
    """The call's inputs and a script that runs it again, side by side; the script's path."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while (script := folder / f"vr_kernels_check_{operator}_{number}.py").exists():
        number += 1
    torch.save(
        {name: _mapped(lambda tensor: tensor.detach(), value) for name, value in call.items()},
        script.with_suffix(".pt"),
    )
    script.write_text(
        f'"""A call of {operator} whose result differs from the reference."""\n\n'
        "from pathlib import Path\n\nimport torch\n\nimport vr_kernels\n\n"
        'call = torch.load(Path(__file__).with_suffix(".pt"))\n'
        f'ours = vr_kernels.{operator}(**call, backend="{backend}")\n'
        f'reference = vr_kernels.{operator}(**call, backend="reference")\n'
        "for number, (a, b) in enumerate(zip(*[x if isinstance(x, tuple) else (x,) for x in (ours, reference)])):\n"
        '    print(f"output {number}: largest difference {(a.double() - b.double()).abs().max():.3g}")\n'
    )
    return script
