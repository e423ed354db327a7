"""What the fuzzer does to a call that was right: other memory for the same numbers, other numbers, other arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from python_tests._cases import Call
from python_tests.fuzz._calls import Target

HUGE = 1 << 40  # of an axis that is only named: expanded, it takes no memory


def spread(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(*tensor.shape, 2)[..., 0].copy_(tensor)


def reversed_axes(tensor: Tensor) -> Tensor:
    axes = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def inside(tensor: Tensor) -> Tensor:
    """An odd number of elements from the start of a larger tensor."""
    larger = tensor.new_zeros([size + 3 for size in tensor.shape])
    return larger[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)


def negated_lazily(tensor: Tensor) -> Tensor:
    """A view whose memory holds the opposite numbers, as the imaginary part of a conjugate does."""
    return torch._neg_view(-tensor) if tensor.is_floating_point() else tensor


# The same numbers in other memory.
LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    spread,
    reversed_axes,
    inside,
    negated_lazily,
    lambda tensor: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
)


def overlapping(tensor: Tensor) -> Tensor:
    """Rows that share elements: every stride is 1."""
    return tensor.new_ones(sum(tensor.shape) + 1).as_strided(tensor.shape, [1] * tensor.dim())


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape) if tensor.dim() > 0 and tensor.shape[0] > 0 else tensor


# Other numbers of the same shape, still to be computed with exactly.
REPEATS: tuple[Callable[[Tensor], Tensor], ...] = (overlapping, expanded, torch.zeros_like)

NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e-42, -0.0, 6e4)
INTEGERS = (-2, -1, 0, 1, 2**31 - 1, 2**40, -(2**63), 2**63 - 1)

KINDS: tuple[Callable[[Tensor], Any], ...] = (
    lambda tensor: None,
    lambda tensor: "a text",
    lambda tensor: 3,
    lambda tensor: object(),
    lambda tensor: [],
    lambda tensor: [tensor],
    lambda tensor: [tensor, tensor],
    lambda tensor: (None,),
    lambda tensor: {"tensor": tensor},
    lambda tensor: tensor.tolist(),
    lambda tensor: np.ones(tuple(tensor.shape)),
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor.to(torch.uint8),
    lambda tensor: tensor.to(torch.int32),
    lambda tensor: tensor.to(torch.int64),
    lambda tensor: tensor.to(torch.float64),
    lambda tensor: tensor.to(torch.float16),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to(torch.float8_e4m3fn),
    lambda tensor: torch.nested.nested_tensor([tensor.float()], layout=torch.jagged) if tensor.dim() > 0 else tensor,
    lambda tensor: tensor[None],
    lambda tensor: tensor[..., None],
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor.sum(),
    lambda tensor: tensor.mT if tensor.dim() > 1 else tensor,
)

OPTIONS: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**400, 0.5, 2.0, float("nan"), float("inf"), 1j,
    "", "mean", "max", "softmax", "none", "all", "gelu", "sdpa", "cpu", "triton", "cuda", "reference", "nonsense",
    b"cpu",
    [], [1], (2, 2), {}, object(), torch.float32, torch.int32, np.float32(0.5), np.int64(2), np.ones(2),
    torch.tensor(2), torch.ones(2, 2),
)  # fmt: skip


@st.composite
def resized(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """One axis of another size, which takes no memory however large."""
    if tensor.dim() == 0:
        return tensor
    sizes = list(tensor.shape)
    axis = draw(st.integers(0, len(sizes) - 1))
    sizes[axis] = draw(st.sampled_from((0, 1, sizes[axis] + 1, 2 * sizes[axis], 7, HUGE)))
    return tensor.new_ones([1] * len(sizes)).expand(sizes)


@st.composite
def renumbered(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """One element, or all, of another value."""
    if tensor.numel() == 0:
        return tensor
    if tensor.dtype == torch.bool:
        return ~tensor
    value = draw(st.sampled_from(NUMBERS if tensor.is_floating_point() else INTEGERS))
    if not tensor.is_floating_point():
        limits = torch.iinfo(tensor.dtype)
        value = min(max(value, limits.min), limits.max)
    changed = tensor.clone(memory_format=torch.contiguous_format)
    if draw(st.booleans()):
        changed.fill_(value)
    else:
        changed.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    return changed


def is_plain(tensor: Tensor) -> bool:
    """Whether it can be spoilt once more: real numbers of more than a byte, in memory."""
    small = tensor.is_floating_point() and tensor.itemsize == 1
    in_memory = tensor.layout == torch.strided and not tensor.is_meta and tensor.numel() < HUGE
    return in_memory and not small and not tensor.is_complex()


def tensors_of(call: Call) -> list[tuple[str, int | None]]:
    """Where the call has tensors: by name, and by place in a list."""
    places: list[tuple[str, int | None]] = []
    for name, value in call.items():
        if isinstance(value, Tensor):
            places.append((name, None))
        elif isinstance(value, list):
            places += [(name, i) for i, item in enumerate(value) if isinstance(item, Tensor)]
    return places


def changed(call: Call, place: tuple[str, int | None], value: Any) -> Call:
    name, number = place
    if number is None:
        return call | {name: value}
    return call | {name: [value if i == number else item for i, item in enumerate(call[name])]}


def at(call: Call, place: tuple[str, int | None]) -> Tensor:
    name, number = place
    tensor: Tensor = call[name] if number is None else call[name][number]
    return tensor


@st.composite
def right_calls(draw: st.DrawFn, target: Target) -> Call:
    """A call that must give a result: any layout, repeated rows, no images at all."""
    call: Call = draw(target.calls())
    for place in tensors_of(call):
        if at(call, place).is_floating_point() and draw(st.integers(0, 7)) == 0:
            call = changed(call, place, draw(st.sampled_from(REPEATS))(at(call, place)))
        if draw(st.booleans()):
            call = changed(call, place, draw(st.sampled_from(LAYOUTS))(at(call, place)))
    return call


@st.composite
def spoilt_calls(draw: st.DrawFn, target: Target) -> Call:
    """A call with one to three arguments changed, which may be right by luck."""
    call: Call = draw(target.calls())
    for _ in range(draw(st.integers(1, 3))):
        places = tensors_of(call)
        what = draw(st.sampled_from(("size", "number", "kind", "option", "missing")))
        if what in ("size", "number", "kind") and places:
            place = draw(st.sampled_from(places))
            tensor = at(call, place)
            if not is_plain(tensor):
                continue
            if what == "kind":
                value: Any = draw(st.sampled_from(KINDS))(tensor)
            else:
                value = draw(resized(tensor) if what == "size" else renumbered(tensor))
            call = changed(call, place, value)
        elif what == "missing" and call:
            call = {name: value for name, value in call.items() if name != draw(st.sampled_from(sorted(call)))}
        else:
            name = draw(st.sampled_from(target.parameters))
            call = call | {name: draw(st.sampled_from(OPTIONS))}
    return call
