"""How an operator is registered with torch: schema, fake, autograd, vmap, autocast, and the eager short cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

library = torch.library.Library("vr_kernels", "DEF")

_TRACING = (FakeTensor, FunctionalTensor)
_PLAIN = {Tensor, torch.nn.Parameter}
_AUTOCAST = {"AutocastCPU": torch._C.DispatchKey.AutocastCPU, "AutocastCUDA": torch._C.DispatchKey.AutocastCUDA}


def define_operator(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register ``schema`` with one implementation for CPU and CUDA (it dispatches on its own ``backend`` argument)."""
    name = schema.partition("(")[0]
    qualified = f"vr_kernels::{name}"
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    overload = getattr(torch.ops.vr_kernels, name).default
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)
    torch.library.register_vmap(qualified, _loop_over_batch(overload), lib=library)
    for autocast_key, excluded in _AUTOCAST.items():
        library.impl(name, _below_autocast(overload, excluded), autocast_key)
    return overload  # type: ignore[no-any-return]


def below_autograd(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation of many torch calls, spared what torch notes of each view and each write for autograd, which
    is a fifth of a small call's time. torch.library runs implementations without most of it too."""

    @functools.wraps(implementation)
    def run(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return implementation(*arguments)

    return run


def refuse_double_backward(operator: str) -> Callable[..., Any]:
    """The autograd rule of a backward operator: these operators are differentiable once, in reverse mode."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{operator}: second derivatives are not supported; use backend='reference' for them")

    return backward


def refuse_other_modes(operator: str, tensors: Sequence[Tensor]) -> None:
    """Raise where torch would differentiate by rules that an opaque operator lacks.

    Without a forward-mode rule torch would silently take the tangent for zero; functorch's grad cannot enter an
    ``autograd.Function`` made by ``register_autograd``.
    """
    if torch.compiler.is_compiling():
        return
    advice = "is not supported by the compiled backends; use backend='reference' for it"
    transforms = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    if torch._C._functorch.TransformType.Grad in transforms:
        raise RuntimeError(f"{operator}: torch.func.grad {advice}, or call backward()")
    if forward_ad._current_level >= 0:
        # What vmap has batched does not tell its tangent: its examples are asked one by one, outside of a jvp.
        batched = [torch._C._functorch.is_batchedtensor(tensor) for tensor in tensors]
        under_jvp = True in batched and torch._C._functorch.TransformType.Jvp in transforms
        plain = [tensor for tensor, is_batched in zip(tensors, batched, strict=True) if not is_batched]
        if under_jvp or any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in plain):
            raise RuntimeError(f"{operator}: forward-mode differentiation {advice}")


def intercepted(tensors: Sequence[Tensor]) -> bool:
    """Whether something wants to see the operator itself: a compiler or tracer, a torch mode, functorch, forward-mode
    differentiation, autocast, a subclass, a tensor without memory, or one whose memory holds the opposite of its
    numbers (``x.conj().imag``): the dispatcher writes it out.

    If not, torch's dispatcher can be skipped, which is most of a small call's cost: the kernel is called as it is, or
    from an ``autograd.Function``.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or not _PLAIN.issuperset(map(type, tensors))
        or True in [tensor.is_meta or tensor.is_neg() for tensor in tensors]
    )


def wrapped(*tensors: Any) -> str | None:
    """The name of a tensor subclass among ``tensors``: its own rules must see every use of it (sharded, quantised)."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN and isinstance(tensor, Tensor) and not isinstance(tensor, _TRACING):
            return type(tensor).__name__
    return None


def recording(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd will want this call's gradient."""
    return torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in tensors]


def shortest_call(
    overload: Callable[..., Any],
    implementation: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """A checked call of an operator by the shortest way that what surrounds it allows.

    Its schema names tensors, and lists of them, before all else.
    """
    operator = overload.__name__.partition(".")[0]
    schema = overload._schema  # type: ignore[attr-defined]
    tensor_count = sum("Tensor" in str(argument.type) for argument in schema.arguments)

    class Eager(torch.autograd.Function):
        """The same autograd rule without torch's dispatcher in the forward pass.

        An ``autograd.Function`` sees no tensor in a list: so the inputs' tensors are its arguments too, one by one.
        """

        @staticmethod
        def forward(ctx: Any, inputs: Sequence[Any], *tensors: Tensor) -> Any:
            # Which arguments are tensors, nested as they are.
            ctx.tensors = [
                [True] * len(part) if type(part) is list else i < tensor_count and part is not None
                for i, part in enumerate(inputs)
            ]
            output = implementation(*inputs)
            setup_context(ctx, inputs, output)
            return output

    def eager_backward(ctx: Any, *grads: Any) -> Any:
        gradients = backward(_NestedContext(ctx), *grads)
        there = [gradient for gradient, tensor in zip(gradients, ctx.tensors, strict=True) if tensor]
        return None, *_flat(there)

    Eager.backward = staticmethod(eager_backward)  # type: ignore[method-assign]

    def run(*arguments: Any) -> Any:
        tensors = [tensor for tensor in _flat(arguments[:tensor_count]) if tensor is not None]
        if intercepted(tensors):
            refuse_other_modes(operator, tensors)
            return overload(*arguments)
        if not recording(tensors):
            return implementation(*arguments)
        return Eager.apply(arguments, *tensors)  # type: ignore[no-untyped-call]

    return run


class _NestedContext:
    """An ``autograd.Function``'s context as torch.library shows it: what is asked for is nested as the inputs are."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        asks = iter(ctx.needs_input_grad[1:])
        self.needs_input_grad = [
            [next(asks) for _ in part] if isinstance(part, list) else part and next(asks) for part in ctx.tensors
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _flat(values: Sequence[Any]) -> list[Any]:
    flat = []
    for value in values:
        if type(value) is list:
            flat += value
        else:
            flat.append(value)
    return flat


def asked_for(gradients: Sequence[Any], asks: Sequence[Any]) -> list[Any]:
    """``gradients`` with None for those that nobody asked for; both nested as the arguments are."""
    return [
        asked_for(gradient, ask) if isinstance(ask, (list, tuple)) else gradient if ask else None
        for gradient, ask in zip(gradients, asks, strict=True)
    ]


def stand_in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of that dtype and of this one's shape and device, of one number: for who asks for nothing else."""
    return tensor.new_empty((), dtype=dtype).expand(tensor.shape)


def as_output(tensor: Tensor, *shape: int) -> Tensor:
    """A new contiguous tensor, given the shape of equal size that an operator returns. Not by a view: autograd refuses
    to let anybody write into a view that a custom function made, as ``out += residual`` does."""
    return tensor.resize_(shape)


def cast_for_autocast(query: Tensor, *arguments: Any, cast: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to) -> Any:
    """``(query, *arguments)`` in autocast's dtype where autocast is on: tensors, lists of tensors, None as it is.

    ``cast=stand_in``: what a call would be cast to, for ``explain``, without a copy.
    """
    if not torch._C._is_any_autocast_enabled():
        return (query, *arguments)
    device = query.device.type if isinstance(query, Tensor) else "cpu"
    if not torch._C._is_autocast_available(device) or not torch.is_autocast_enabled(device):  # meta has none
        return (query, *arguments)
    dtype = torch.get_autocast_dtype(device)

    def eligible(value: Any) -> bool:
        # As torch's own autocast: float64 stays.
        return isinstance(value, Tensor) and value.is_floating_point() and value.dtype not in (dtype, torch.float64)

    def converted(value: Any) -> Any:
        return cast(value, dtype) if eligible(value) else value

    return tuple([converted(x) for x in a] if isinstance(a, list) else converted(a) for a in (query, *arguments))


def _below_autocast(overload: Any, key: Any) -> Callable[..., Any]:
    # The public function has cast the arguments; inside, fp32 workspaces must stay fp32.
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return overload(*args, **kwargs)

    return call


def _loop_over_batch(overload: Any) -> Callable[..., Any]:
    """A vmap rule that is right for every argument: run each example by itself and stack the results."""

    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        flat, spec = pytree.tree_flatten(list(args))
        dims = pytree.tree_flatten(list(in_dims), is_leaf=lambda dim: dim is None)[0]
        operator = overload.__name__.partition(".")[0]
        results = []
        for i in range(info.batch_size):
            example = [x if dim is None else x.select(dim, i) for x, dim in zip(flat, dims, strict=True)]
            refuse_other_modes(operator, [x for x in example if isinstance(x, Tensor)])
            results.append(overload(*pytree.tree_unflatten(example, spec)))
        if not results:
            raise ValueError(f"{operator}: vmap maps over a dimension of size 0; it must be at least 1")
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        columns = [torch.stack(column) for column in zip(*results, strict=True)]
        outputs = type(results[0])(columns)
        return outputs, type(results[0])(0 for _ in columns)

    return rule
