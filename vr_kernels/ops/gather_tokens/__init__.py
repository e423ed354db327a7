"""``gather_tokens``: the vision tokens of each image out of the stream, normalised, the text-guided token behind."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._registration import wrapped
from vr_kernels.ops._tokens import (
    TokenRequest,
    check_guide,
    check_image_sample,
    check_token_rows,
    stream_of,
    token_rows_of,
    typical_request,
)
from vr_kernels.ops._triton import token_launch
from vr_kernels.ops.gather_tokens import op, reference

__all__ = ["gather_tokens"]


def gather_tokens(
    hidden_states: Tensor,
    token_rows: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    text_mask: Tensor | None = None,
    image_sample: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Rows of the stream, gathered by image and RMS-normalised, and behind them the text-guided token.

    What the bidirectional layer of Vision Remember v2 (§3.3) reads: the guide is the maximum over the raw text rows,
    normalised like every other row. Squares and sums are float32 (float64 for float64), and each number is rounded
    once. Not cast by autocast: the norm sees the stream as it is.

    Args:
        hidden_states: (B, T, D), any strides; float32, bfloat16, float16 or float64.
        token_rows: (I, N) int32 or int64, row b*T + t of each vision token of each image, -1 = padding. On the CPU
            values are checked, and a row may stand once; elsewhere a number that is no row counts as padding.
        norm_weight: (D,), in the dtype of hidden_states or float32; None: no norm.
        norm_eps: added to the mean square.
        text_mask: (B, T) bool, True at the prompt's text tokens (see ``text_guide_token``); None: no guide.
        image_sample: (I,) int32 or int64, the sample each image belongs to; None: I is B, in order.
        backend: None chooses; "cpu", "triton" or "reference" by name: it runs or it raises.

    Returns:
        (I, N, D), or (I, N+1, D) with a ``text_mask``, in the dtype of hidden_states. Padding, and the guide of a
        sample without text, are zeros. Differentiable once, in reverse mode, in hidden_states and norm_weight.

    Raises:
        ValueError: shapes, devices or index values that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> hidden_states = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    >>> gather_tokens(hidden_states, torch.tensor([[2, -1]]), text_mask=torch.tensor([[True, True, False]]))
    tensor([[[0., 2.],
             [0., 0.],
             [3., 4.]]])
    """
    given = signatures(hidden_states, token_rows, norm_weight, text_mask, image_sample)
    chosen = _plan(given, wrapped(norm_weight), norm_eps, backend)
    arguments = (hidden_states, token_rows, norm_weight, text_mask, image_sample, norm_eps)
    if chosen != "reference":
        rows: Tensor = op.run(*arguments, chosen)[0]
        return rows
    batch, length, _ = hidden_states.shape
    check_token_rows("gather_tokens", token_rows, batch * length)
    check_image_sample("gather_tokens", image_sample, batch)
    return reference.gather_tokens(*arguments)


def _request(
    hidden_states: Any,
    token_rows: Any,
    *,
    norm_weight: Any = None,
    text_mask: Any = None,
    image_sample: Any = None,
    **options: Any,
) -> TokenRequest:
    return _check(signatures(hidden_states, token_rows, norm_weight, text_mask, image_sample), wrapped(norm_weight))


def _check(given: tuple[Any, ...], subclass: str | None) -> TokenRequest:
    hidden_states, token_rows, norm_weight, text_mask, image_sample = given
    arguments = Arguments("gather_tokens", query="hidden_states")
    stream = stream_of(arguments, hidden_states)
    width = stream.shape[2]
    images, _ = token_rows_of(arguments, token_rows, stream)
    arguments.auxiliary("norm_weight", norm_weight, stream, [(width,)])
    check_guide(arguments, text_mask, image_sample, stream, images)
    return TokenRequest(stream.device.type, stream.dtype, subclass, width=width)


@remember
def _plan(given: tuple[Any, ...], subclass: str | None, norm_eps: float, backend: str | None) -> str:
    request = _check(given, subclass)
    arguments = Arguments("gather_tokens")
    arguments.number("norm_eps", norm_eps, optional=False, least=0)
    return OPERATOR.select(request, backend)


OPERATOR: Operator[TokenRequest] = Operator(
    "gather_tokens",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=token_launch.refuses, passed_over=experimental),
        Backend("reference"),
    ),
    _request,
    typical_request,
)
register(gather_tokens, OPERATOR)
