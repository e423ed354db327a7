"""``patch_linear``: what it equals, how features may lie, its blocks, its gradients, what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import DTYPES, floating_tensors, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import PATCH_LINEAR
from python_tests._patch_cases import convolution, patch_call
from vr_kernels.ops.token_fusion import blocked, native, op

EVERYTHING = PATCH_LINEAR.mixes["everything"]


def assert_obeys(backend: str, draws: int = 3, **spec: Any) -> None:
    run = PATCH_LINEAR.run(backend)
    assert_obeys_the_error_rule(run, convolution, convolution, lambda seed: patch_call(seed, **spec), draws=draws)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "linear"])
@pytest.mark.parametrize(
    "spec",
    [
        {"kernel": 1, "patches": (1, 1), "batch": 1, "widths": 1, "out": 1},
        {"kernel": 1, "patches": (7, 3), "widths": (5, 1, 31), "out": 17},
        {"kernel": 2, "patches": (1, 5), "widths": (67, 130), "out": 3},
        {"kernel": 3, "patches": (5, 1), "widths": (3, 2), "out": 29},
        {"kernel": 5, "patches": (1, 2), "widths": 2, "out": 7},
    ],
    ids=["one number", "k=1", "k=2", "k=3", "k=5"],
)
def test_odd_sizes_obey_the_error_rule(backend: str, spec: dict[str, Any], dtype: torch.dtype) -> None:
    assert_obeys(backend, dtype=dtype, bias=True, activation="gelu", **spec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_in_float32_and_its_gradient_keep_that_dtype(dtype: torch.dtype) -> None:
    call = patch_call(dtype=dtype, auxiliary=torch.float32, bias=True)
    function = PATCH_LINEAR.run("cpu")
    results = evaluate(function, call, random_cotangents(function, call))
    assert results["output 0"].dtype == dtype
    assert results["d bias"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_blocks_of_a_few_patches_and_columns(kernel: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LEAST_ROWS", 5)
    monkeypatch.setattr(native, "PART", 7)
    monkeypatch.setattr(blocked, "LEAST_COLUMNS", 3)
    gathers = []
    gather = native.NativePatches.gather

    def counted(self: Any, levels: Any, patches: Any, first: int, rows: Tensor) -> None:
        gathers.append((first, *rows.shape))
        gather(self, levels, patches, first, rows)

    monkeypatch.setattr(native.NativePatches, "gather", counted)
    assert_obeys("cpu", dtype=dtype, kernel=kernel, patches=(3, 5), widths=(6, 4, 9), bias=True, activation="gelu")
    assert {first for first, *_ in gathers} > {0, 5}
    assert len({columns for *_, columns in gathers}) > 1 or kernel == 1


@pytest.mark.parametrize("kernel", [1, 2])
def test_frozen_features_cost_no_gradient(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = patch_call(kernel=kernel, widths=(6, 4), bias=True)
    call["weight"].requires_grad_()
    monkeypatch.setattr(native.NativePatches, "scatter", lambda *arguments: pytest.fail("made a feature gradient"))
    vr_kernels.patch_linear(**call, backend="cpu").sum().backward()
    assert call["weight"].grad is not None


def test_a_level_that_asks_for_no_gradient_gets_none() -> None:
    call = patch_call(widths=(6, 4, 9))
    call["features"][1].requires_grad_()
    expected = convolution(**call)
    out = vr_kernels.patch_linear(**call, backend="cpu")
    (result,) = torch.autograd.grad(out.sum(), call["features"][1])
    torch.testing.assert_close(result, torch.autograd.grad(expected.sum(), call["features"][1])[0])


def test_a_weight_may_have_the_convolution_s_own_shape() -> None:
    call = patch_call(kernel=3, widths=(3, 2), bias=True)
    shaped = call | {"weight": call["weight"].unflatten(1, (5, 3, 3)).requires_grad_()}
    out = vr_kernels.patch_linear(**shaped)
    assert torch.equal(out, vr_kernels.patch_linear(**call))
    out.sum().backward()
    assert shaped["weight"].grad.shape == (11, 5, 3, 3)


def test_the_activation_inside_the_operator_has_the_gradients_of_the_one_outside() -> None:
    call = patch_call(**EVERYTHING)
    function = PATCH_LINEAR.run("cpu")
    cotangents = random_cotangents(function, call)
    expected = evaluate(function, call, cotangents)

    def inside(features: Any, weight: Tensor, bias: Tensor, kernel_size: int, activation: str) -> Tensor:
        return torch.ops.vr_kernels.patch_linear(features, weight, bias, kernel_size, activation, "cpu")

    for name, result in evaluate(inside, call, cotangents).items():
        torch.testing.assert_close(result, expected[name], msg=name)


@pytest.mark.parametrize("backend", ["cpu", "linear", "reference"])
def test_no_image_gives_no_output_and_gradients_of_zero(backend: str) -> None:
    call = patch_call(**EVERYTHING)
    call["features"] = [level[:0] for level in call["features"]]
    function = PATCH_LINEAR.run(backend)
    results = evaluate(function, call, random_cotangents(function, call))
    assert results["output 0"].shape == (0, 2, 3, 11)
    assert not results["d weight"].any()
    assert not results["d bias"].any()


@pytest.mark.parametrize("backend", ["cpu", "linear", "reference"])
def test_nan_in_a_feature_reaches_its_patch_and_no_other(backend: str) -> None:
    call = patch_call(widths=(6, 4))  # (2, 4, 6) features in (2, 2, 3) patches
    call["features"][1][1, 3, 4, 0] = torch.nan
    out = vr_kernels.patch_linear(**call, backend=backend).isnan()
    assert out[1, 1, 2].all()
    assert out.sum() == out[1, 1, 2].numel()


@pytest.mark.parametrize("backend", ["reference", "linear"])
def test_gradients_in_plain_pytorch_are_those_of_finite_differences(backend: str) -> None:
    call = patch_call(dtype=torch.float64, batch=1, patches=(1, 2), widths=(2, 1), out=2, bias=True, activation="gelu")
    tensors = [tensor.requires_grad_() for tensor in floating_tensors(call).values()]

    def run(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return vr_kernels.patch_linear([first, second], weight, bias, kernel_size=2, activation="gelu", backend=backend)

    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_a_weight_that_is_a_tensor_subclass_is_used_as_it_presents_itself() -> None:
    class Adapted(torch.Tensor):
        pass

    call = patch_call()
    adapted = call | {"weight": call["weight"].as_subclass(Adapted)}
    explanation = vr_kernels.explain(vr_kernels.patch_linear, **adapted)
    assert explanation.chosen == "linear"
    assert "a weight is a Adapted" in explanation.reasons["cpu"]
    torch.testing.assert_close(vr_kernels.patch_linear(**adapted).as_subclass(Tensor), vr_kernels.patch_linear(**call))


def test_without_onednn_the_same_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.onednn_takes(torch.bfloat16):
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    monkeypatch.setattr(native, "onednn_takes", lambda dtype: False)
    PATCH_LINEAR.assert_obeys_the_error_rule("cpu", lambda seed: patch_call(seed, dtype=torch.bfloat16, **EVERYTHING))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_on_cuda_have_the_reference_s_shapes_and_dtypes(dtype: torch.dtype) -> None:
    call = patch_call(dtype=dtype, auxiliary=torch.float32, **EVERYTHING)
    expected = PATCH_LINEAR.run("reference")(**call)[0]
    with FakeTensorMode():
        fake = map_tensors(call, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        result = vr_kernels.patch_linear(**fake, backend="triton")
        explanation = vr_kernels.explain(vr_kernels.patch_linear, **fake)
    assert (result.shape, result.dtype, result.device.type) == (expected.shape, expected.dtype, "cuda")
    assert explanation.chosen == "linear"
    assert explanation.reasons["triton"] == "by name only: experimental: never measured on a GPU"


def test_gradients_on_cuda_are_like_their_inputs() -> None:
    call = patch_call(auxiliary=torch.float32, dtype=torch.bfloat16, widths=(6, 4), bias=True)
    with FakeTensorMode():
        fake = map_tensors(call, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        inputs = (fake["features"], fake["weight"], fake["bias"], 2, None)
        out = torch.ops.vr_kernels.patch_linear(*inputs, "triton")
        gradients = op.patch_linear_backward(out, *inputs, [True, True, True], "triton")
    expected = [fake["weight"], fake["bias"], *fake["features"]]
    assert [(g.shape, g.dtype, g.device) for g in gradients] == [(t.shape, t.dtype, t.device) for t in expected]


def test_a_request_says_what_the_call_is() -> None:
    request = vr_kernels.ops.token_fusion.OPERATOR.request(**patch_call(kernel=3, widths=(6, 4)))
    assert dataclasses.asdict(request) == {
        "device": "cpu", "dtype": torch.float32, "wrapped": None, "channels": 10, "out_channels": 11, "recorded": False,
        "patches": {"batch": 2, "down": 2, "across": 3, "kernel": 3},
    }  # fmt: skip
    assert request.multiplications == 12 * 90 * 11


@pytest.mark.parametrize(
    ("dtype", "width", "recorded", "chosen"),
    [
        (torch.float32, 256, True, "linear"),  # 113 million multiplications
        (torch.float32, 1024, True, "cpu"),  # 453 million
        (torch.bfloat16, 256, True, "linear"),
        (torch.float32, 256, False, "cpu"),
        (torch.float32, 1, False, "linear"),  # 442 thousand
        (torch.bfloat16, 1, False, "cpu"),
    ],
)
def test_the_linear_form_is_chosen_where_there_is_little_to_multiply(
    dtype: torch.dtype, width: int, recorded: bool, chosen: str
) -> None:
    levels = [torch.empty(1, 24, 24, width, dtype=dtype) for _ in range(3)]
    weight = torch.empty(256, 3 * width, dtype=dtype, requires_grad=recorded)
    explanation = vr_kernels.explain(vr_kernels.patch_linear, levels, weight)
    assert explanation.chosen == chosen
    assert ("multiplications" in explanation.reasons["cpu"]) == (chosen == "linear")


def test_a_call_takes_what_explain_says(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    original = vr_kernels.ops.token_fusion.COMPOSITE["linear"]
    monkeypatch.setitem(
        vr_kernels.ops.token_fusion.COMPOSITE, "linear", lambda *call: taken.append("linear") or original(*call)
    )
    call = {"features": torch.randn(1, 24, 24, 64), "weight": torch.randn(64, 64)}  # 2.4 million multiplications
    vr_kernels.patch_linear(**call)
    assert taken == []
    call["weight"].requires_grad_()
    vr_kernels.patch_linear(**call)
    assert taken == ["linear"]
    with torch.no_grad():
        vr_kernels.patch_linear(**call)
    assert taken == ["linear"]
