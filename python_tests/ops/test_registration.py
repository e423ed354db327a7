"""The operators as torch knows them: schemas, fakes, compilation, export, autocast, vmap, and the modes they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests._cases import Call, floating_tensors, leading_argument, map_tensors
from python_tests._errors import evaluate, random_cotangents
from python_tests._operators import (
    LOCAL_ATTENTION,
    LOCAL_CROSS_ATTENTION,
    SUBJECTS,
    Subject,
    over_mixes,
    over_operators,
)


class Recorder(TorchDispatchMode):
    """Keeps every call of this library's operators that passes torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "vr_kernels":
            self.calls[function.name()] = (function, args)
        return function(*args, **(kwargs or {}))


def recorded(subject: Subject, call: Call) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The forward and the backward operator of one call, with their arguments."""
    function = subject.run("cpu")
    cotangents = random_cotangents(function, call)
    with Recorder() as recorder:
        evaluate(function, call, cotangents)
    return recorder.calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@over_mixes
def test_opcheck_passes_forward_and_backward(subject: Subject, mix: dict[str, Any], dtype: torch.dtype) -> None:
    calls = recorded(subject, subject.call(dtype=dtype, **mix))
    assert set(calls) == {f"vr_kernels::{subject.name}", f"vr_kernels::{subject.name}_backward"}
    for name, (operator, arguments) in calls.items():

        def leaf(value: Any, name: str = name) -> Any:
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [leaf(item) for item in value]
            floats = isinstance(value, Tensor) and value.is_floating_point()
            # The backward operator is an end: it has no derivative of its own.
            return value.detach().clone().requires_grad_(not name.endswith("_backward")) if floats else value

        torch.library.opcheck(operator, tuple(leaf(value) for value in arguments))


def assert_compiled_is_eager(compiled: Callable[..., Any], function: Callable[..., Any], call: Call) -> None:
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)
    for name, result in evaluate(compiled, call, cotangents).items():
        torch.testing.assert_close(result, expected[name], msg=name)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch.compiler.reset()


@over_mixes
def test_compiles_once_for_all_shapes_forward_and_backward(subject: Subject, mix: dict[str, Any]) -> None:
    compiles_once(subject, mix, "cpu")


@pytest.mark.parametrize("subject", [subject for subject in SUBJECTS if subject.chosen != "cpu"], ids=lambda s: s.name)
def test_a_choice_that_depends_on_sizes_compiles_once_too(subject: Subject) -> None:
    # Where the reason for it printed the size, that was a graph for each.
    compiles_once(subject, subject.mixes["everything"], None)


def compiles_once(subject: Subject, mix: dict[str, Any], backend: str | None) -> None:
    function = subject.run(backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    # Sizes that differ from each other: equal ones would be traced as one symbol.
    first, *others = [subject.call(**(mix | sizes)) for sizes in subject.sizes]
    assert_compiled_is_eager(compiled, function, first)
    with torch.compiler.set_stance("fail_on_recompile"):
        for call in others:
            assert_compiled_is_eager(compiled, function, call)


@over_operators
def test_compiles_with_inductor(subject: Subject) -> None:
    function, call = subject.run("cpu"), subject.call(**subject.mixes["everything"])
    assert_compiled_is_eager(torch.compile(function, fullgraph=True), function, call)


@pytest.mark.parametrize("backend", ["unabsorbed", "absorbed", "reference"])
def test_the_paths_in_plain_pytorch_compile_too(backend: str) -> None:
    function = LOCAL_CROSS_ATTENTION.run(backend)
    call = LOCAL_CROSS_ATTENTION.call(**LOCAL_CROSS_ATTENTION.mixes["grid"])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_compiled_is_eager(compiled, function, call)


class Exported(torch.nn.Module):
    def __init__(self, subject: Subject, constants: Call) -> None:
        super().__init__()
        self.function, self.constants = subject.run("cpu"), constants

    def forward(self, tensors: dict[str, Any]) -> Any:
        return self.function(**tensors, **self.constants)


@over_mixes
def test_exports_and_computes_the_same(subject: Subject, mix: dict[str, Any]) -> None:
    call = subject.call(**mix)
    tensors = {name: value for name, value in call.items() if isinstance(value, (Tensor, list))}
    module = Exported(subject, {name: value for name, value in call.items() if name not in tensors})
    program = torch.export.export(module, (tensors,))
    assert any(node.target is getattr(torch.ops.vr_kernels, subject.name).default for node in program.graph.nodes)
    for result, expected in zip(program.module()(tensors), module(tensors), strict=True):
        assert torch.equal(result, expected)


@over_mixes
def test_fake_tensors_have_the_shapes_dtypes_and_strides_of_real_ones(subject: Subject, mix: dict[str, Any]) -> None:
    call = subject.call(dtype=torch.bfloat16, **mix)
    real = subject.run("cpu")(**call)
    with FakeTensorMode() as mode:
        floating = map_tensors(call, mode.from_tensor)
        indices = {k: mode.from_tensor(v) for k, v in call.items() if isinstance(v, Tensor) and v is floating[k]}
        fake = subject.run("cpu")(**(floating | indices))
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@over_mixes
def test_autocast_is_the_explicit_cast(subject: Subject, mix: dict[str, Any]) -> None:
    call = subject.call(**mix)
    function = subject.run("cpu")
    explicit = call | map_tensors({k: v for k, v in call.items() if k in subject.autocast}, Tensor.bfloat16)
    cotangents = random_cotangents(function, explicit)
    expected = evaluate(function, explicit, cotangents)

    def autocast(**arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function(**arguments)

    results = evaluate(autocast, call, cotangents)
    assert results["output 0"].dtype == (torch.bfloat16 if subject.autocast else torch.float32)
    if subject is LOCAL_ATTENTION:
        assert results["output 1"].dtype == torch.float32, "the log-sum-exp is not autocast's to round"
    for name, result in results.items():
        if name.startswith("d "):
            assert result.dtype == torch.float32, name
        torch.testing.assert_close(result, expected[name].to(result.dtype), rtol=0, atol=0, msg=name)


@over_operators
def test_vmap_over_each_argument_is_a_loop(subject: Subject) -> None:
    function = subject.run("cpu")
    calls = [subject.call(seed, **subject.mixes["everything"]) for seed in (1, 2, 3)]
    for name, value in calls[0].items():
        if isinstance(value, list):
            batched: Any = [torch.stack(levels) for levels in zip(*[call[name] for call in calls], strict=True)]
        elif isinstance(value, Tensor):
            batched = torch.stack([call[name] for call in calls])
        else:
            continue
        results = torch.vmap(lambda value, name=name: function(**(calls[0] | {name: value})))(batched)
        for i, call in enumerate(calls):
            for result, expected in zip(results, function(**(calls[0] | {name: call[name]})), strict=True):
                torch.testing.assert_close(result[i], expected, rtol=0, atol=0, msg=name)


@over_operators
def test_vmap_over_nothing_is_refused_in_words(subject: Subject) -> None:
    call = subject.call()
    names = list(floating_tensors(call))
    with pytest.raises(ValueError, match=f"{subject.name}: vmap maps over a dimension of size 0"):
        torch.vmap(lambda x: subject.run("cpu")(**(call | {names[-1]: x})))(call[names[-1]][None][:0])


@over_operators
def test_no_autocast_reaches_the_meta_device(subject: Subject) -> None:
    call = map_tensors(subject.call(), lambda tensor: tensor.to("meta"))
    call |= {name: value.to("meta") for name, value in call.items() if isinstance(value, Tensor)}
    expected = subject.run(None)(**call)
    with torch.autocast("cpu", torch.bfloat16):
        for result, like in zip(subject.run(None)(**call), expected, strict=True):
            assert (result.shape, result.dtype, result.device.type) == (like.shape, like.dtype, "meta")


def refused(function: Callable[[], Any], subject: Subject, words: str) -> None:
    with pytest.raises(RuntimeError, match=f"{subject.name}: {words}.*backend='reference'"):
        function()


@over_operators
def test_forward_mode_raises_for_a_tangent_of_any_argument(subject: Subject) -> None:
    call = subject.call(**subject.mixes["everything"])
    for chosen in floating_tensors(call).values():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(chosen, torch.ones_like(chosen))
            arguments = map_tensors(call, lambda tensor, chosen=chosen, dual=dual: dual if tensor is chosen else tensor)
            refused(
                lambda arguments=arguments: subject.run("cpu")(**arguments), subject, "forward-mode differentiation"
            )


@over_operators
def test_functorch_s_derivatives_raise(subject: Subject) -> None:
    call = subject.call()
    query = call.pop(leading_argument(call))

    def total(q: Tensor) -> Tensor:
        return subject.run("cpu")(q, **call)[0].sum()

    refused(lambda: torch.func.jvp(total, (query,), (query,)), subject, "forward-mode differentiation")
    refused(lambda: torch.func.grad(total)(query), subject, "torch.func.grad")
    if isinstance(query, Tensor):
        batch = query[None]
        refused(lambda: torch.func.jvp(torch.vmap(total), (batch,), (batch,)), subject, "forward-mode differentiation")
        with forward_ad.dual_level():
            torch.testing.assert_close(torch.vmap(total)(batch), total(query)[None])
            dual = forward_ad.make_dual(batch, batch)
            refused(lambda: torch.vmap(total)(dual), subject, "forward-mode differentiation")


@over_operators
def test_a_second_derivative_raises(subject: Subject) -> None:
    call = subject.call()
    *_, last = floating_tensors(call).values()  # a stream's gradient may be the output's own, which torch derives
    last.requires_grad_()
    out = subject.run("cpu")(**call)[0]
    (first,) = torch.autograd.grad(out.square().sum(), last, create_graph=True)
    refused(lambda: first.sum().backward(), subject, "second derivatives")


@over_operators
def test_nothing_is_recorded_where_gradients_are_off(subject: Subject) -> None:
    call = subject.call()
    call[leading_argument(call)].requires_grad_()
    expected = subject.run("cpu")(**call)[0]
    assert expected.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            out = subject.run("cpu")(**call)[0]
        assert not out.requires_grad
        assert torch.equal(out, expected)


@over_operators
def test_results_may_be_written_to_before_backward(subject: Subject) -> None:
    """``out += residual``: autograd lets nobody write into a view that a custom function made."""
    function, call = subject.run("cpu"), subject.call(dtype=torch.float32)
    cotangents = random_cotangents(function, call)

    def doubled(**call: Any) -> tuple[Tensor, ...]:
        return tuple(
            result.mul_(2) if result.requires_grad and not is_saved else result * 2
            for result, is_saved in zip(function(**call), saved, strict=True)
        )

    # The weights of the attention are kept for the backward pass: a write to them is an error, as it should be.
    saved = [bool(i == len(cotangents) - 1 and subject.outputs.get("return_attention")) for i in range(len(cotangents))]
    expected = evaluate(lambda **call: tuple(result * 2 for result in function(**call)), call, cotangents)
    for name, result in evaluate(doubled, call, cotangents).items():
        torch.testing.assert_close(result, expected[name], msg=name)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@over_operators
def test_a_traced_call_is_no_constant(subject: Subject) -> None:
    """torch.jit.trace sees an operator only where it passes torch's dispatcher."""
    function, call, other = subject.run("cpu"), subject.call(), subject.call(1)
    name = leading_argument(call)
    first = call[name][0] if isinstance(call[name], list) else call[name]
    others = other[name][0] if isinstance(other[name], list) else other[name]

    def of_first(tensor: Tensor) -> Tensor:
        value = [tensor, *call[name][1:]] if isinstance(call[name], list) else tensor
        return function(**{**call, name: value})[0]

    with torch.no_grad():
        traced = torch.jit.trace(of_first, first, check_trace=False)
        torch.testing.assert_close(traced(others), of_first(others))
        assert not torch.equal(of_first(others), of_first(first))
