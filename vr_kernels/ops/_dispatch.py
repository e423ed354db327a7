"""Which backend runs a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
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
    """``refuses``: why a call cannot run here; ``passed_over``: why ``auto`` does not choose it although it could."""

    name: str
    refuses: Callable[[R], str | None] = _never
    passed_over: Callable[[R], str | None] = _never


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
        known = {backend.name: backend for backend in self.backends}
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{self.name}: backend is {name!r}; it must be None or one of {', '.join(known)}")
        reason = known[name].refuses(request)
        if reason is not None:
            others = "; ".join(f"{k}: {v}" for k, v in self.reasons(request, None).items() if k != name)
            raise ValueError(f"{self.name}: backend={name!r} cannot run this call: {reason}. The others: {others}")
        return name

    def _asked(self, name: str | None) -> str | None:
        """``name``, or what VR_KERNELS_BACKEND says of this operator, or of every operator that has such a backend."""
        if name is not None:
            return name
        backends = SETTINGS.backends
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
        ValueError: ``function`` is not an operator of this library, or the call itself would raise.
    """
    if function not in _operators:
        known = ", ".join(operator.name for operator in operators())
        raise ValueError(f"explain: {function!r} is not an operator of vr_kernels; the operators are {known}")
    return _operators[function].explain_call(*args, **kwargs)
