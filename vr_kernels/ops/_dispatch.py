"""Which backend runs a call, and why the others do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from vr_kernels.ops._settings import SETTINGS


@dataclass(frozen=True)
class Request:
    """What every backend needs to know of a call before it says yes; operators add to it."""

    device: str  # torch.device.type
    dtype: torch.dtype
    wrapped: str | None = None  # the tensor subclass that some weight is, if one is


R = TypeVar("R", bound=Request)


def _never(request: Request) -> str | None:
    return None


@dataclass(frozen=True)
class Backend(Generic[R]):
    """``refuses``: why a call cannot run here; ``passed_over``: why it is not chosen unasked although it could be."""

    name: str
    refuses: Callable[[R], str | None] = _never
    passed_over: Callable[[R], str | None] = _never


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses_tensors(request: Request, kernels: str, devices: Sequence[str]) -> str | None:
    """Why kernels of our own, on the first of ``devices``, or on one that stands in for it, cannot read the tensors."""
    if request.device not in devices:
        return f"the {kernels} kernels take {devices[0].upper()} tensors, these are on {request.device}"
    if request.dtype not in KERNEL_DTYPES:
        return f"the {kernels} kernels take float32, bfloat16 and float16, not {request.dtype}"
    if request.wrapped is not None:
        return f"the {kernels} kernels read plain tensors, and a weight is a {request.wrapped}"
    return None


def experimental(request: Request) -> str | None:
    """Why no call chooses a GPU backend by itself: one is preferred only where a measurement says that it wins."""
    return "experimental: never measured on a GPU"


@dataclass(frozen=True)
class Explanation:
    """The backend that a call gets, and one reason per backend."""

    operator: str
    chosen: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.reasons))
        lines = [f"{name:<{width}}  {reason}" for name, reason in self.reasons.items()]
        return "\n".join([f"{self.operator}: {self.chosen}", *lines])


@dataclass(frozen=True)
class Operator(Generic[R]):
    """An operator's backends in order of preference.

    ``request`` checks a call's arguments; ``typical`` is the request of a paper's call on a device and in a dtype.
    """

    name: str
    backends: tuple[Backend[R], ...]
    request: Callable[..., R]
    typical: Callable[[str, torch.dtype], R]

    def select(self, request: R, name: str | None) -> str:
        """The backend's name: the one asked for, or the first that can run the call and is measured to be worth it."""
        name = self._asked(name)
        if name is None:
            for backend in self.backends:
                if backend.refuses(request) is None and backend.passed_over(request) is None:
                    return backend.name
            reasons = "; ".join(f"{backend}: {reason}" for backend, reason in self.reasons(request, None).items())
            raise ValueError(f"{self.name}: no backend can run this call by itself: {reasons}")
        self.check_name(self.name, name)
        known = {backend.name: backend for backend in self.backends}
        reason = known[name].refuses(request)
        if reason is not None:
            others = "; ".join(f"{k}: {v}" for k, v in self.reasons(request, None).items() if k != name)
            raise ValueError(f"{self.name}: backend={name!r} cannot run this call: {reason}. The others: {others}")
        return name

    def check_name(self, operation: str, name: Any) -> None:
        """Refuse, on behalf of ``operation``, what is neither None nor one of the backends."""
        known = [backend.name for backend in self.backends]
        if name is not None and not (isinstance(name, str) and name in known):
            raise ValueError(f"{operation}: backend is {name!r}; it must be None or one of {', '.join(known)}")

    def _asked(self, name: str | None) -> str | None:
        """``name``, or what VR_KERNELS_BACKEND says of this operator, or of every operator that has such a backend."""
        if name is not None:
            return name
        backends = SETTINGS.backends
        if backends:
            _check_names(backends)
        everywhere = backends.get("")
        default = everywhere if everywhere in [backend.name for backend in self.backends] else None
        return backends.get(self.name, default)

    def explain_call(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Explanation:
        """Of the public function's own arguments."""
        return self.explain(self.request(*args, **kwargs), backend)

    def reasons(self, request: R, chosen: str | None, *, asked: bool = False) -> dict[str, str]:
        reasons = {}
        for backend in self.backends:
            refusal, demotion = backend.refuses(request), backend.passed_over(request)
            if backend.name == chosen:
                reasons[backend.name] = "chosen"
            elif refusal is not None:
                reasons[backend.name] = f"cannot run: {refusal}"
            elif demotion is not None:
                reasons[backend.name] = f"by name only: {demotion}"
            else:
                why = "another was asked for" if asked else "a backend above it is preferred"
                reasons[backend.name] = f"can run; {why}"
        return reasons

    def explain(self, request: R, name: str | None) -> Explanation:
        chosen = self.select(request, name)
        return Explanation(self.name, chosen, self.reasons(request, chosen, asked=self._asked(name) is not None))


_operators: dict[Callable[..., Any], Operator[Any]] = {}


def _check_names(backends: Mapping[str, str]) -> None:
    """Refuse what VR_KERNELS_BACKEND names and no operator has; what one operator lacks, that operator refuses."""
    known = {operator.name for operator in operators()}
    unknown = sorted(backends.keys() - known - {""})
    if unknown:
        raise ValueError(f"VR_KERNELS_BACKEND names {unknown[0]!r}; the operators are {', '.join(sorted(known))}")
    names = sorted({backend.name for operator in operators() for backend in operator.backends})
    if backends.get("", names[0]) not in names:
        raise ValueError(f"VR_KERNELS_BACKEND is {backends['']!r}; the backends are {', '.join(names)}")


def register(function: Callable[..., Any], operator: Operator[Any]) -> None:
    _operators[function] = operator


def functions() -> dict[Callable[..., Any], Operator[Any]]:
    """The public functions and their operators."""
    return dict(_operators)


def operators() -> list[Operator[Any]]:
    return list(dict.fromkeys(_operators.values()))


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend ``function(*args, **kwargs)`` would use, with one reason per backend. Nothing is computed.

    >>> import torch, vr_kernels
    >>> query, key = torch.randn(1, 2, 2, 1, 8), torch.randn(1, 4, 4, 1, 8)
    >>> vr_kernels.explain(vr_kernels.local_attention, query, key, backend="reference").chosen
    'reference'

    Raises:
        ValueError, TypeError: ``function`` is not an operator of this library, or the call has an argument that it does
            not take, or shapes, dtypes, devices or a backend that it would refuse. Values are not looked at.
    """
    if function not in _operators:
        known = ", ".join(operator.name for operator in operators())
        named = getattr(function, "__name__", f"a {type(function).__name__}")
        raise ValueError(
            f"explain: {named} is not an operator of vr_kernels; the operators are {known}. "
            "VR_KERNELS_LOG=1 shows what modules call"
        )
    inspect.signature(function).bind(*args, **kwargs)
    return _operators[function].explain_call(*args, **kwargs)
