"""``patch_linear``: what it equals, how features may lie, its blocks, its gradients, what it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import DTYPES, Call, floating_tensors, map_tensors
from python_tests._errors import assert_obeys_the_error_rule, evaluate, random_cotangents
from python_tests._operators import PATCH_LINEAR
from python_tests._patch_cases import patch_call
from vr_kernels.ops.token_fusion import blocked, native, op
from vr_kernels.ops.token_fusion.patches import Patches, as_matrix, side_by_side

EVERYTHING = PATCH_LINEAR.mixes["everything"]


def convolution(
    features: Any, weight: Tensor, bias: Tensor | None = None, *, kernel_size: int = 1, activation: str | None = None
) -> Tensor:
    """The stock form: Conv2d on a concatenation."""
    joined = features if isinstance(features, Tensor) else torch.cat(features, -1)
    kernel = weight.unflatten(1, (-1, kernel_size, kernel_size))
    bias = None if bias is None else bias.to(weight.dtype)
    out = F.conv2d(joined.permute(0, 3, 1, 2), kernel, bias, stride=kernel_size).permute(0, 2, 3, 1)
    return out if activation is None else F.gelu(out)


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
    monkeypatch.setattr(native, "LEAST_ROWS", dict.fromkeys(native.LEAST_ROWS, 5))
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


# How the features of a grid may lie in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "without its CLS row": lambda x: torch.cat(
        [x.new_full((x.shape[0], 1, x.shape[3]), torch.nan), x.flatten(1, 2)], 1
    )[:, 1:].unflatten(1, x.shape[1:3]),
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "columns first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second channel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one image for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_features_are_read_where_they_lie(layout: Callable[[Tensor], Tensor], kernel: int) -> None:
    call = patch_call(kernel=kernel, widths=(6, 4, 9), bias=True, activation="gelu")
    laid = call | {"features": [layout(level) for level in call["features"]]}
    same = call | {"features": [level.contiguous() for level in laid["features"]]}
    for requires_grad in (False, True):
        trained = [level.detach().requires_grad_(requires_grad) for level in laid["features"]]
        out = vr_kernels.patch_linear(**(laid | {"features": trained}), backend="cpu")
        torch.testing.assert_close(out.detach(), vr_kernels.patch_linear(**same, backend="cpu"))
        if requires_grad:
            expected = [level.detach().requires_grad_() for level in same["features"]]
            stock = convolution(**(same | {"features": expected}))
            results = torch.autograd.grad(out.square().sum(), trained)
            for d, d_stock in zip(results, torch.autograd.grad(stock.square().sum(), expected), strict=True):
                torch.testing.assert_close(d, d_stock, rtol=1e-4, atol=1e-4)


def test_levels_side_by_side_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    call = patch_call(kernel=1, widths=(6, 4, 9), bias=True)
    expected = vr_kernels.patch_linear(**call)
    joint = torch.cat(call["features"], -1)
    monkeypatch.setattr(native, "_move", lambda *arguments: pytest.fail("gathered"))
    beside = call | {"features": list(joint.split((6, 4, 9), -1))}
    assert torch.equal(vr_kernels.patch_linear(**beside), expected)


def test_only_neighbours_in_one_buffer_count_as_side_by_side() -> None:
    joint = torch.arange(2 * 3 * 4 * 12.0).view(2, 3, 4, 12)
    a, b, c = joint.split((5, 3, 4), -1)
    found = side_by_side([a, b, c])
    assert found is not None
    assert torch.equal(found, joint)
    found = side_by_side([b, c])
    assert found is not None
    assert torch.equal(found, joint[..., 5:])
    for others in ([b, a], [a, c], [a, a], [a, b.clone()], [a[:1], joint[1:, ..., 5:8]], [a, b.transpose(1, 2)]):
        assert side_by_side(others) is None


def test_features_are_a_matrix_where_their_rows_are_at_one_distance() -> None:
    x = torch.arange(2 * 7 * 6.0).view(2, 7, 6)
    grid = x[:, 1:].unflatten(1, (2, 3))  # two images, a row of each cut off
    assert as_matrix(grid, Patches(2, 2, 3, 1)) is None
    one = as_matrix(grid[1:, ..., 2:5], Patches(1, 2, 3, 1))
    assert one is not None
    assert torch.equal(one, x[1, 1:, 2:5])
    assert as_matrix(x[:1, :6].unflatten(1, (2, 3)), Patches(1, 1, 1, 2)) is None
    assert as_matrix(x[:1, :1].unflatten(1, (1, 1)).expand(1, 2, 3, 6), Patches(1, 2, 3, 1)) is None


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
    call = patch_call(**EVERYTHING)
    expected = vr_kernels.patch_linear(**call, backend="cpu")
    monkeypatch.setattr(native, "onednn_takes", lambda dtype: False)
    torch.testing.assert_close(vr_kernels.patch_linear(**call, backend="cpu"), expected)


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


Refusals = dict[str, Callable[[Call], Call]]
VALUES: Refusals = {
    "features is an empty sequence; it must hold at least one level": lambda c: {"features": []},
    "features has shape (2, 4, 6); it must be (B, H, W, D) a level": lambda c: {"features": c["features"][0][..., 0]},
    "features[1] has width 0": lambda c: {"features": [c["features"][0], c["features"][1][..., :0]]},
    "features[1] has grid (2, 2, 6), features[0] has (2, 4, 6); all levels must share one grid":
        lambda c: {"features": [c["features"][0], c["features"][1][:, :2]]},
    "features have height 3; it must be a positive multiple of 2, k":
        lambda c: {"features": [level[:, :3] for level in c["features"]]},
    "features have width 0; it must be a positive multiple of 2, k":
        lambda c: {"features": [level[:, :, :0] for level in c["features"]]},
    "weight has shape (11, 39); it must be (O, C*k*k) = (O, 40), or (O, C, k, k) = (O, 10, 2, 2)":
        lambda c: {"weight": c["weight"][:, 1:]},
    "weight has shape (11, 10, 4, 1); it must be (O, C*k*k) = (O, 40), or (O, C, k, k) = (O, 10, 2, 2)":
        lambda c: {"weight": c["weight"].view(11, 10, 4, 1)},
    "weight has shape (0, 40)": lambda c: {"weight": c["weight"][:0]},
    "weight has shape (40,); it must be (O, C*k*k) or (O, C, k, k)": lambda c: {"weight": c["weight"][0]},
    "weight is on meta, features is on cpu; all tensors must share one device":
        lambda c: {"weight": c["weight"].to("meta")},
    "bias has shape (10,); it must be (11,)": lambda c: {"bias": c["bias"][:10]},
    "kernel_size is 0; it must be an integer of at least 1": lambda c: {"kernel_size": 0},
    "kernel_size is 2.0; it must be an integer of at least 1": lambda c: {"kernel_size": 2.0},
    'activation is \'relu\'; it must be None or "gelu"': lambda c: {"activation": "relu"},
    "backend is 'gpu'; it must be None or one of cpu, triton, linear, reference": lambda c: {"backend": "gpu"},
}  # fmt: skip
TYPES: Refusals = {
    "features[1] is None; it must be a torch.Tensor": lambda c: {"features": [c["features"][0], None]},
    "features is None; it must be a torch.Tensor": lambda c: {"features": None},
    "features is torch.int64; it must be float32": lambda c: {"features": [x.long() for x in c["features"]]},
    "features[1] is torch.float64, features is torch.float32; they must share one dtype":
        lambda c: {"features": [c["features"][0], c["features"][1].double()]},
    "weight is torch.bfloat16, features is torch.float32; they must share one dtype":
        lambda c: {"weight": c["weight"].bfloat16()},
    "bias is torch.float64; it must be torch.float32": lambda c: {"bias": c["bias"].double()},
}  # fmt: skip


def refuse(error: type[Exception], words: str, change: Callable[[Call], Call]) -> None:
    call = patch_call(widths=(6, 4), bias=True)
    with pytest.raises(error, match=re.escape(f"patch_linear: {words}")):
        vr_kernels.patch_linear(**(call | change(call)))


@pytest.mark.parametrize("words", VALUES)
def test_values_that_do_not_fit_are_refused(words: str) -> None:
    refuse(ValueError, words, VALUES[words])


@pytest.mark.parametrize("words", TYPES)
def test_types_that_do_not_fit_are_refused(words: str) -> None:
    refuse(TypeError, words, TYPES[words])


def test_a_request_says_what_the_call_is() -> None:
    request = vr_kernels.ops.token_fusion.OPERATOR.request(**patch_call(kernel=3, widths=(6, 4)))
    assert dataclasses.asdict(request) == {
        "device": "cpu", "dtype": torch.float32, "wrapped": None, "channels": 10, "out_channels": 11,
        "patches": {"batch": 2, "down": 2, "across": 3, "kernel": 3},
    }  # fmt: skip
