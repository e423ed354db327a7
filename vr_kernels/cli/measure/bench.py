"""What is measured of an operator: its cases, its contenders, and the least that each case costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One measurement. Strings and numbers alone, so that it goes into a record, and to another process, as it is."""

    name: str
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    backward: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def direction(self) -> str:
        return "forward and backward" if self.backward else "forward"

    @property
    @abstractmethod
    def sizes(self) -> str:
        """In words, for a reader of the table."""

    @abstractmethod
    def small(self) -> Case:
        """Of the same kind, and quick to compute in float64."""

    @abstractmethod
    def quick(self) -> Case:
        """Of the same kind, for whether things work and not how fast."""

    def __str__(self) -> str:
        return f"{self.name}: {self.sizes}, {self.dtype}, {self.direction}"


C = TypeVar("C", bound=Case)
X = TypeVar("X")


@dataclass(frozen=True)
class Contender(Generic[X]):
    """A way to compute the operator: its outputs, then the gradients of what is trained where the case has them.

    No ``rival`` computes something else, or from more than ours is given: its time is shown to compare with, and beats
    nobody. It may return nothing that can be compared.
    """

    name: str
    what: str
    run: Callable[[X], tuple[Tensor, ...]]
    rival: bool = True

    def __call__(self, x: X) -> tuple[Tensor, ...]:
        return self.run(x)


class Trained(Protocol):
    """Inputs of which some are trained; without ``grad_out``, the output's gradient, there is no backward pass."""

    @property
    def grad_out(self) -> Tensor | None: ...

    @property
    def trained(self) -> Sequence[Tensor]: ...


T = TypeVar("T", bound=Trained)


def results(forward: Callable[[T], Tensor], x: T) -> tuple[Tensor, ...]:
    """What a contender returns that computes ``forward``: the output, then the gradients of what is trained."""
    if x.grad_out is None:
        with torch.no_grad():
            return (forward(x),)
    out = forward(x)
    return (out, *torch.autograd.grad(out, x.trained, x.grad_out))


P = ParamSpec("P")
R = TypeVar("R")


def under_sdpa(backend: SDPBackend, forward: Callable[P, R]) -> Callable[P, R]:
    """With one implementation of SDPA alone, whether it would be chosen or not."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with sdpa_kernel(backend):
            return forward(*args, **kwargs)

    return run


def compiled(forward: Callable[P, R]) -> Callable[P, R]:
    """Under torch.compile, which has forgotten the sizes before: else it would compile this for any size."""
    torch.compiler.reset()
    return torch.compile(forward, dynamic=False)


TRITON_ALONE: Mapping[str, str] = {"triton": "Triton kernels run on CUDA"}  # ``Bench.cuda_only`` of most operators


class Bench(ABC, Generic[C, X]):
    """One operator's benchmark. Whatever is specific to it stands in its own package beside this file."""

    name: ClassVar[str]
    title: ClassVar[str]
    case_type: type[C]
    shapes: dict[str, C]
    default: Sequence[str]  # the shapes that are measured where none is asked for
    baselines: Sequence[str]
    cuda_only: Mapping[str, str] = {}  # baselines that run there alone, and why
    yardstick: str = "naive"  # the stock way, by whose error ours is judged
    outputs: int = 1  # how many of the results are outputs; the others are gradients

    @abstractmethod
    def quantities(self, case: C) -> Sequence[str]:
        """What a contender returns, by name."""

    @abstractmethod
    def inputs(self, case: C) -> X:
        """The same random ones each time, what is trained asking for gradients where the case has a backward pass."""

    @abstractmethod
    def exact(self, case: C, x: X) -> tuple[Tensor, ...]:
        """The results in float64."""

    @abstractmethod
    def contender(self, name: str, case: C) -> Contender[X]:
        """ "ours", the yardstick or a baseline; what cannot run here shows when it is first called."""

    @abstractmethod
    def chosen(self, case: C, x: X) -> str:
        """The backend that ours gets."""

    @abstractmethod
    def operations(self, case: C) -> float:
        """Floating-point operations that no implementation avoids."""

    @abstractmethod
    def bytes_moved(self, case: C) -> float:
        """Inputs and results once each."""

    def lacking(self, name: str, case: C) -> str | None:
        """Why a baseline does not apply to a case, or None."""
        return None if case.device == "cuda" else self.cuda_only.get(name)

    def truth(self, case: C) -> str:
        """What ``exact`` is, in words."""
        return "float64"

    def details(self, case: C, x: X, name: str) -> dict[str, float]:
        """What else there is to know of a contender, by name and unit; found apart from the rounds that compare."""
        return {}

    def keeps_no_buffer(self, name: str) -> bool:
        """Whether a contender is compiled for the very size, and so is warmed up with it before its memory is read."""
        return name.startswith(("compiled", "flex"))

    def case_of(self, facts: dict[str, Any]) -> C:
        """A case from a record or another process, whose tuples have become lists."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
        return self.case_type(**fields)
