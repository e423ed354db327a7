"""``patch_linear``: levels concatenated, patches gathered, one projection, bias and GELU, without the copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, equal, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._registration import cast_for_autocast, recording, stand_in, wrapped
from vr_kernels.ops._triton import support
from vr_kernels.ops.token_fusion import linear, op, reference
from vr_kernels.ops.token_fusion.patches import Patches, PatchRequest, typical_request

__all__ = ["patch_linear"]

# Plain PyTorch: any device, differentiable as PyTorch is.
COMPOSITE = {"linear": linear.patch_linear, "reference": reference.patch_linear}


def patch_linear(
    features: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int = 1,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """A k x k convolution of stride k over several levels (LLaVA-STF, Eq. 1 at k = 1 and Eq. 2), channels last.

    The function is ``gelu(conv2d(cat(levels), weight, bias, stride=k))``. The levels are read where they lie, a block
    of patches at a time, in place of their concatenation and its im2col matrix; and not even that where k is 1 and they
    lie side by side in one buffer, as ``capture_features(..., joint=True)`` writes them.

    Args:
        features: one tensor or a sequence of L levels, (B, H, W, D_l), any strides (hidden states with the CLS row
            sliced off are not copied); C = sum of D_l. float32, bfloat16, float16 or float64.
        weight: (O, C*k*k), channel-major (c, ky, kx) as a flattened Conv2d weight, or (O, C, k, k) as it is.
        bias: (O,), in the dtype of features or float32.
        kernel_size: k, which divides H and W.
        activation: None, or "gelu" (the exact one, by erf).
        backend: None chooses by measurement (see ``vr_kernels.explain``); "cpu", "triton", "linear" or "reference" by
            name: it runs or it raises.

    Returns:
        (B, H/k, W/k, O) in the dtype of features and weight. Differentiable once, in reverse mode, in features, weight
        and bias; frozen features cost nothing in the backward pass.

    Raises:
        ValueError: shapes, devices or options that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside "linear" and "reference".

    >>> import torch
    >>> hidden_states = [torch.randn(1, 1 + 6 * 6, 32) for _ in range(3)]
    >>> levels = [state[:, 1:].unflatten(1, (6, 6)) for state in hidden_states]
    >>> patch_linear(levels, torch.randn(64, 96 * 4), torch.randn(64), kernel_size=2, activation="gelu").shape
    torch.Size([1, 3, 3, 64])
    """
    levels = [*features] if isinstance(features, (list, tuple)) else [features]
    weight, levels = cast_for_autocast(weight, levels)
    recorded = recording([tensor for tensor in (weight, bias, *levels) if isinstance(tensor, Tensor)])
    given = signatures(weight, bias, *levels)
    chosen = _plan(given, wrapped(weight, bias), recorded, kernel_size, activation, backend)
    matrix = weight if weight.dim() == 2 else weight.flatten(1)
    if chosen in COMPOSITE:
        return COMPOSITE[chosen](levels, matrix, bias, kernel_size, activation)
    # With a gradient to come, torch's GELU keeps what it was applied to, which the operator would compute again.
    outside = activation is not None and recorded
    out = op.run(levels, matrix, bias, kernel_size, None if outside else activation, chosen)
    return F.gelu(out) if outside else out


def _request(
    features: Any, weight: Any, bias: Any = None, *, kernel_size: int = 1, activation: str | None = None
) -> PatchRequest:
    levels = [*features] if isinstance(features, (list, tuple)) else [features]
    recorded = recording([tensor for tensor in (weight, bias, *levels) if isinstance(tensor, Tensor)])
    subclass = wrapped(weight, bias)
    weight, levels = cast_for_autocast(weight, levels, cast=stand_in)
    return _check(signatures(weight, bias, *levels), subclass, recorded, kernel_size, activation)


def _check(
    given: tuple[Any, ...], subclass: str | None, recorded: bool, kernel_size: int, activation: str | None
) -> PatchRequest:
    """All that can be refused from shapes, dtypes, devices and options: signatures as ``_request`` orders them."""
    weight, bias, *features = given
    arguments = Arguments("patch_linear", query="features")
    levels = arguments.levels("features", features)
    first = levels[0]
    arguments.rank("features", first, {4: "(B, H, W, D) a level"})
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool) or kernel_size < 1:
        raise arguments.error(f"kernel_size is {kernel_size!r}; it must be an integer of at least 1")
    for axis, size in zip(("height", "width"), first.shape[1:3], strict=True):
        if size == 0 or size % kernel_size != 0:
            raise arguments.error(f"features have {axis} {size}; it must be a positive multiple of {kernel_size}, k")
    channels = sum(level.shape[-1] for level in levels)
    got = arguments.companion("weight", weight, first)
    columns, convolution = channels * kernel_size**2, (channels, kernel_size, kernel_size)
    arguments.rank("weight", got, {2: "(O, C*k*k)", 4: "(O, C, k, k)"})
    fits = got.shape[1] == columns if len(got.shape) == 2 else equal(got.shape[1:], convolution)
    if got.shape[0] < 1 or not fits:
        raise arguments.error(
            f"weight has shape {got.shape}; it must be (O, C*k*k) = (O, {columns}), or (O, C, k, k) = "
            f"(O, {channels}, {kernel_size}, {kernel_size}): C is the width of the features together"
        )
    arguments.auxiliary("bias", bias, first, [(got.shape[0],)])
    arguments.choice("activation", activation, [None, "gelu"])
    patches = Patches.of(first.shape[:3], kernel_size)
    return PatchRequest(
        first.device.type,
        first.dtype,
        subclass,
        patches=patches,
        channels=channels,
        out_channels=got.shape[0],
        recorded=recorded,
    )


@remember
def _plan(
    given: tuple[Any, ...],
    subclass: str | None,
    recorded: bool,
    kernel_size: int,
    activation: str | None,
    backend: str | None,
) -> str:
    return OPERATOR.select(_check(given, subclass, recorded, kernel_size, activation), backend)


# Below so many multiplications the linear form was measured to be faster on two cores, in the same run: with a
# gradient to come 1.1 to 1.7 times up to 113 million, as fast from 302 million on; without one, in float32, 1.4 times
# at 65 thousand and slower, 0.8, at 6 million.
LEAST_WITH_GRADIENT, LEAST_WITHOUT = 2**28, 2**20


def _little_work(request: PatchRequest) -> str | None:
    # The reasons do not print the count: a compiler that traces this would make a graph for each.
    if request.recorded and request.multiplications < LEAST_WITH_GRADIENT:
        return "fewer than 2^28 multiplications and a gradient to come: the linear form was measured to be faster"
    if not request.recorded and request.dtype == torch.float32 and request.multiplications < LEAST_WITHOUT:
        return "fewer than 2^20 multiplications in float32: the linear form was measured to be faster"
    return None


OPERATOR: Operator[PatchRequest] = Operator(
    "patch_linear",
    (
        Backend("cpu", refuses=_native.refuses_cpu, passed_over=_little_work),
        Backend("triton", refuses=support.refuses, passed_over=experimental),
        Backend("linear"),
        Backend("reference", passed_over=lambda request: "the definition, by conv2d"),
    ),
    _request,
    typical_request,
)
register(patch_linear, OPERATOR)
