"""Any strides, any sizes: what a tensor's memory looks like changes neither the result nor what is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests._cases import DTYPES, Call, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._layouts import LAYOUTS, assert_equal_up_to_rounding, assert_strides_change_nothing
from python_tests._operators import (
    LOCAL_ATTENTION,
    LOCAL_CROSS_ATTENTION,
    WINDOWED,
    Subject,
    over_backends,
    over_windowed,
)
from vr_kernels.ops._window_kernel import WindowProblem
from vr_kernels.ops._window_native import NativeKernel


def every_argument(subject: Subject, **spec: Any) -> Call:
    if subject is LOCAL_ATTENTION:
        return subject.call(value_width=12, bias="per window", saliency=True, **spec)
    return subject.call(biases=True, norm="level", bias="per window", saliency="value", **spec)


@over_backends(subjects=WINDOWED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_change_nothing(
    subject: Subject, backend: str, indexed: bool, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    call = every_argument(subject, indexed=indexed, dtype=dtype)
    rounding = 0 if subject is LOCAL_ATTENTION else 8
    assert_strides_change_nothing(subject.run(backend), call, layout, rounding=rounding)


@over_backends(subjects=WINDOWED)
def test_expanded_tensors_are_read_as_they_are(subject: Subject, backend: str) -> None:
    call = every_argument(subject)
    expanded = map_tensors(call, lambda tensor: tensor[:1].expand(tensor.shape))
    function = subject.run(backend)
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, map_tensors(expanded, torch.Tensor.contiguous), cotangents)
    rounding = 0 if subject is LOCAL_ATTENTION else 8
    assert_equal_up_to_rounding(evaluate(function, expanded, cotangents), expected, rounding)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Where the features lie that reach the native kernels."""
    seen: set[int] = set()
    for method in ("forward", "backward"):
        original = getattr(NativeKernel, method)

        def record(kernel: NativeKernel, problem: WindowProblem, *rest: Any, original: Any = original) -> None:
            seen.update(level.data_ptr() for level in (*problem.keys, *problem.values))
            original(kernel, problem, *rest)

        monkeypatch.setattr(NativeKernel, method, record)
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_windowed
def test_hidden_states_without_their_cls_row_are_not_copied(
    subject: Subject, dtype: torch.dtype, addresses: set[int]
) -> None:
    hidden_states = [torch.randn(2, 1 + 4 * 9, width).to(dtype) for width in (16, 8, 24)]
    levels = [level[:, 1:].unflatten(1, (4, 9)) for level in hidden_states]
    assert not levels[0].is_contiguous()
    if subject is LOCAL_ATTENTION:
        call = subject.call(dtype=dtype, width=(16, 8, 24)) | {"key": levels}
    else:
        call = subject.call(dtype=dtype) | {"features": levels}
    call["query"].requires_grad_()
    out, *_ = subject.run("cpu")(**call)
    out.sum().backward()
    assert addresses == {level.data_ptr() for level in levels}


@over_windowed
def test_features_that_ask_for_no_gradient_cost_none(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    call = every_argument(subject)
    wanted = [name for name in call if name not in ("key", "value", "features")]
    function = subject.run("cpu")
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a feature gradient was computed that nobody asked for")

    monkeypatch.setattr(NativeKernel, "feature_gradient", refuse)
    for name, result in evaluate(function, call, cotangents, wanted).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)
    with pytest.raises(AssertionError, match="nobody asked for"):
        evaluate(function, call, cotangents)


WINDOWS = ((1, 1), (1, 2), (3, 1), (1, 5), (3, 5), (4, 4), (1, 17), (4, 5), (8, 8))
SIZES: dict[str, dict[str, Any]] = {
    **{f"{heads} heads": {"heads": heads} for heads in (1, 2, 3, 7, 15, 16, 17, 32, 33)},
    **{f"{h * w} slots": {"window": (h, w)} for h, w in WINDOWS},
}
WIDTHS = (1, 2, 3, 5, 13, 31, 32, 33, 64, 97, 127, 300)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_windowed
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_any_number_of_heads_and_slots_obeys_the_error_rule(
    sizes: dict[str, Any], subject: Subject, dtype: torch.dtype
) -> None:
    spec = sizes | ({"kv_heads": 1} if subject is LOCAL_ATTENTION else {})
    subject.assert_obeys_the_error_rule(
        "cpu",
        lambda seed: subject.call(seed, dtype=dtype, **spec),
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_windowed
@pytest.mark.parametrize("width", WIDTHS)
def test_any_width_obeys_the_error_rule(width: int, subject: Subject, dtype: torch.dtype) -> None:
    widths = {"width": width, "value_width": width} if subject is LOCAL_ATTENTION else {"widths": (width, 5)}
    subject.assert_obeys_the_error_rule(
        "cpu",
        lambda seed: subject.call(seed, dtype=dtype, **widths),
        norms=["root_mean_square"],
    )


def test_many_windows_obey_the_error_rule() -> None:
    # More windows than a 16-bit count holds; float64 loops would take minutes, so the reference is exact here.
    for subject, spec in ((LOCAL_ATTENTION, {"width": 4}), (LOCAL_CROSS_ATTENTION, {"head_dim": 2, "widths": (4,)})):
        assert_obeys_the_error_rule(
            subject.run("cpu"),
            subject.run("reference"),
            subject.run("reference"),
            lambda seed, subject=subject, spec=spec: subject.call(
                seed, batch=1, windows=(260, 260), window=(1, 2), heads=2, **spec
            ),
            draws=1,
        )
