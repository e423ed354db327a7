"""``deformable_attention``: the formula, transformers' own PyTorch form, edges, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests import _deformable_cases
from python_tests._cases import DTYPES, Call, map_tensors
from python_tests._deformable_cases import deformable_call
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from vr_kernels.ops.deformable_attention import native

BACKENDS = ["cpu", "grid_sample", "reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def run(backend: str | None) -> Callable[..., Tensor]:
    return functools.partial(vr_kernels.deformable_attention, backend=backend)


def transformers_form(value: list[Tensor], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    sizes = [(level.shape[1], level.shape[2]) for level in value]
    rows = torch.cat([level.flatten(1, 2) for level in value], 1)
    dtype = value[0].dtype
    out: Tensor = MultiScaleDeformableAttention()(
        rows, None, sizes, None, sampling_locations.to(dtype), attention_weights.to(dtype), 64
    )
    return out.unflatten(-1, value[0].shape[3:])


SPECS: dict[str, dict[str, Any]] = {
    "two levels": {},
    "one level": {"sizes": ((5, 3),)},
    "a level of one feature": {"sizes": ((1, 1), (2, 7)), "points": 3},
    "one of each": {"batch": 1, "queries": 1, "heads": 1, "width": 1, "points": 1, "sizes": ((1, 1),)},
    "far outside": {"outside": 3.0},
    "odd sizes": {"heads": 5, "width": 13, "queries": 7, "points": 5, "sizes": ((3, 1), (1, 9), (7, 5))},
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@specs
@pytest.mark.parametrize("backend", ["grid_sample", "reference"])
def test_the_definitions_are_the_formula(backend: str, spec: dict[str, Any]) -> None:
    call = map_tensors(deformable_call(**spec), Tensor.double)
    oracle = _deformable_cases.deformable_attention
    cotangents = random_cotangents(oracle, call)
    expected = evaluate(oracle, call, cotangents)
    for name, result in evaluate(run(backend), call, cotangents).items():
        torch.testing.assert_close(result, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@specs
@backends
def test_it_is_transformers_form(backend: str, spec: dict[str, Any]) -> None:
    dtype = torch.float32 if backend == "cpu" else torch.float64
    call = map_tensors(deformable_call(**spec), lambda tensor: tensor.to(dtype))
    cotangents = random_cotangents(transformers_form, call)
    expected = evaluate(transformers_form, call, cotangents)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if backend == "cpu" else {"rtol": 1e-9, "atol": 1e-11}
    for name, result in evaluate(run(backend), call, cotangents).items():
        torch.testing.assert_close(result, expected[name], **tolerance, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("auxiliary", ["float32", "the values'"])
@specs
def test_the_cpu_kernels_obey_the_error_rule(spec: dict[str, Any], auxiliary: str, dtype: torch.dtype) -> None:
    other = torch.float32 if auxiliary == "float32" else dtype
    assert_obeys_the_error_rule(
        run("cpu"),
        run("reference"),
        run("reference"),
        lambda seed: deformable_call(seed, dtype=dtype, auxiliary=other, **spec),
        draws=5,
        norms=["root_mean_square"],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 128, 257])
def test_any_width_obeys_the_error_rule(width: int, dtype: torch.dtype) -> None:
    assert_obeys_the_error_rule(
        run("cpu"),
        run("reference"),
        run("reference"),
        lambda seed: deformable_call(seed, dtype=dtype, width=width),
        norms=["root_mean_square"],
    )


def test_gradients_are_the_finite_differences() -> None:
    spec = {"batch": 1, "queries": 2, "heads": 2, "width": 2, "points": 2, "sizes": ((2, 3), (1, 2))}
    call = map_tensors(deformable_call(**spec), Tensor.double)
    tensors = [x.requires_grad_() for x in (call["sampling_locations"], call["attention_weights"], *call["value"])]
    for backend in ("reference", "grid_sample"):

        def function(places: Tensor, weights: Tensor, *value: Tensor, backend: str = backend) -> Tensor:
            return run(backend)(list(value), places, weights)

        assert torch.autograd.gradcheck(function, tensors)
        if backend == "reference":
            assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("place", [(-0.01, 0.5), (1.0, 0.0), (1e30, 0.5), (0.5, -torch.inf), (0.3, torch.nan)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_place_beyond_the_edge_samples_what_reaches_it_and_zero_farther_out(
    backend: str, place: tuple[float, float]
) -> None:
    value = torch.ones(1, 1, 1, 1, 4)  # its only feature reaches half a grid beyond both edges
    x, y = place
    out = run(backend)(value, torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
    reach = [max(0.0, 1 - abs(c - 0.5)) if abs(c) < 2 else 0.0 for c in place]
    torch.testing.assert_close(out, torch.full_like(out, reach[0] * reach[1]))


@backends
def test_nan_in_a_feature_that_nobody_samples_reaches_nothing(backend: str) -> None:
    call = deformable_call(sizes=((4, 4),), outside=0)
    call["sampling_locations"] = call["sampling_locations"] * 0.4 + 0.05  # never the last row or column
    expected = evaluate(run(backend), call, random_cotangents(run(backend), call))
    call["value"][0][:, 3] = torch.nan
    call["value"][0][:, :, 3] = torch.nan
    results = evaluate(run(backend), call, random_cotangents(run(backend), call))
    for name in ("output 0", "d sampling_locations", "d attention_weights"):
        assert torch.equal(results[name], expected[name]), name
    places = torch.tensor([-0.2, 0.1]).expand(call["sampling_locations"].shape)
    call["value"][0][:] = torch.nan
    assert not run(backend)(**(call | {"sampling_locations": places})).any()


def strided(tensor: Tensor) -> Tensor:
    order = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def padded(tensor: Tensor) -> Tensor:
    outer = tensor.new_full([size + 3 for size in tensor.shape], torch.nan)
    return outer[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("layout", [strided, padded])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_no_bit(dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    call = deformable_call(dtype=dtype)
    cotangents = random_cotangents(run("cpu"), call)
    expected = evaluate(run("cpu"), call, cotangents)
    for name, result in evaluate(run("cpu"), map_tensors(call, layout), [layout(d) for d in cotangents]).items():
        assert torch.equal(result, expected[name]), name


def test_hidden_states_without_their_cls_row_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    call = deformable_call(sizes=((4, 6),))
    level = torch.randn(2, 25, 3, 8)[:, 1:].unflatten(1, (4, 6))
    seen: list[int] = []
    forward = native.forward

    def record(value: list[Tensor], *rest: Any) -> None:
        seen.extend(one.data_ptr() for one in value)
        forward(value, *rest)

    monkeypatch.setattr(native, "forward", record)
    run("cpu")(**(call | {"value": level}))
    assert seen == [level.data_ptr()]


def test_the_number_of_threads_changes_no_bit() -> None:
    call, before = deformable_call(queries=50), torch.get_num_threads()
    cotangents = random_cotangents(run("cpu"), call)
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(evaluate(run("cpu"), call, cotangents))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("wanted", [["sampling_locations"], ["attention_weights"], ["value[1]"], ["value[0]"]], ids=str)
def test_each_gradient_alone_is_what_it_is_among_all(wanted: list[str]) -> None:
    call = deformable_call()
    cotangents = random_cotangents(run("cpu"), call)
    expected = evaluate(run("cpu"), call, cotangents)
    for name, result in evaluate(run("cpu"), call, cotangents, wanted).items():
        assert torch.equal(result, expected[name]), name


NOTHING: dict[str, dict[str, Any]] = {
    "no image": {"batch": 0},
    "no query": {"queries": 0},
    "no point": {"points": 0},
    "a level without features": {"sizes": ((0, 4), (2, 2))},
}


@backends
@pytest.mark.parametrize("spec", NOTHING.values(), ids=NOTHING.keys())
def test_nothing_to_sample_gives_empty_or_zero_results(backend: str, spec: dict[str, Any]) -> None:
    call = deformable_call(**spec)
    if backend == "grid_sample" and ("batch" in spec or "sizes" in spec):
        with pytest.raises(ValueError, match="grid_sample takes no empty batch and no level without features"):
            run(backend)(**call)
        return
    out = evaluate(run(backend), call, random_cotangents(run(backend), call))["output 0"]
    assert out.shape == (spec.get("batch", 2), spec.get("queries", 5), 3, 8)
    if "points" in spec:
        assert not out.any()


def test_autocast_casts_the_values_and_keeps_the_places() -> None:
    call = deformable_call()
    expected = run("cpu")(**(call | {"value": [level.bfloat16() for level in call["value"]]}))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run("cpu")(**call), expected)


def test_deterministic_algorithms_pass_over_grid_sample_on_cuda() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        call = {
            "value": [torch.empty(1, 2, 2, 1, 4, device="cuda")],
            "sampling_locations": torch.empty(1, 1, 1, 1, 1, 2, device="cuda"),
            "attention_weights": torch.empty(1, 1, 1, 1, 1, device="cuda"),
        }
        assert vr_kernels.explain(vr_kernels.deformable_attention, **call).chosen == "grid_sample"
        torch.use_deterministic_algorithms(True)
        try:
            explanation = vr_kernels.explain(vr_kernels.deformable_attention, **call)
        finally:
            torch.use_deterministic_algorithms(False)
    assert explanation.chosen == "reference"
    assert "atomics" in explanation.reasons["grid_sample"]


ones = torch.ones
FAULTS: dict[str, tuple[type[Exception], Callable[[Call], Call]]] = {
    "value is an empty sequence; it must hold at least one level": (ValueError, lambda c: {"value": []}),
    "value is None; it must be a torch.Tensor": (TypeError, lambda c: {"value": None}),
    "value[0] is torch.int64; it must be float32": (TypeError, lambda c: {"value": [x.long() for x in c["value"]]}),
    "value[1] is torch.float16, value is torch.float32": (
        TypeError,
        lambda c: {"value": [c["value"][0], c["value"][1].half()]},
    ),
    "value[1] has shape (3, 5, 3, 8); it must be (B, H, W, h, d)": (
        ValueError,
        lambda c: {"value": [c["value"][0], c["value"][1][0]]},
    ),
    "value[1] has shape (2, 3, 5, 2, 8), value[0] has (2, 4, 6, 3, 8); all levels must share batch, heads and width": (
        ValueError,
        lambda c: {"value": [c["value"][0], c["value"][1][:, :, :, :2]]},
    ),
    "value[0] has 3 heads of width 0; both must be at least 1": (
        ValueError,
        lambda c: {"value": [x[..., :0] for x in c["value"]]},
    ),
    "sampling_locations is None; it must be a torch.Tensor": (TypeError, lambda c: {"sampling_locations": None}),
    "sampling_locations has shape (2, 5, 3, 8, 2); it must be (B, Q, h, L, P, 2)": (
        ValueError,
        lambda c: {"sampling_locations": c["sampling_locations"].flatten(3, 4)},
    ),
    "sampling_locations has shape (2, 5, 3, 1, 4, 2); it must be (2, 5, 3, 2, 4, 2)": (
        ValueError,
        lambda c: {"sampling_locations": c["sampling_locations"][:, :, :, :1]},
    ),
    "sampling_locations is torch.bfloat16; it must be torch.float32 (the value's)": (
        TypeError,
        lambda c: {"sampling_locations": c["sampling_locations"].bfloat16()},
    ),
    "sampling_locations is on meta, value is on cpu; all tensors must share one device": (
        ValueError,
        lambda c: {"sampling_locations": c["sampling_locations"].to("meta")},
    ),
    "attention_weights is None; it must be a torch.Tensor": (TypeError, lambda c: {"attention_weights": None}),
    "attention_weights has shape (2, 5, 3, 2, 3); it must be (2, 5, 3, 2, 4)": (
        ValueError,
        lambda c: {"attention_weights": ones(2, 5, 3, 2, 3)},
    ),
    "backend is 'cuda'; it must be None or one of cpu, ": (
        ValueError,
        lambda c: {"backend": "cuda"},
    ),
}


@pytest.mark.parametrize(("words", "fault"), FAULTS.items(), ids=range(len(FAULTS)))
def test_bad_input_is_refused_in_words(
    words: str, fault: tuple[type[Exception], Callable[[Call], Call]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "forward", lambda *arguments: pytest.fail("a kernel was called with bad input"))
    kind, change = fault
    call = deformable_call()
    with pytest.raises(kind) as caught:
        vr_kernels.deformable_attention(**(call | change(call)))
    assert str(caught.value).startswith(f"deformable_attention: {words}")
