"""``text_guide_token``: the prompt's text in one token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._tokens import TokenRequest, stream_of, typical_request
from vr_kernels.ops._triton import token_launch
from vr_kernels.ops.text_guide_token import op, reference

__all__ = ["text_guide_token"]


def text_guide_token(hidden_states: Tensor, text_mask: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """The text-guided token: each channel's maximum over the prompt's text (Vision Remember v2, §3.3).

    The gradient of a channel goes to one row, the lowest of equal ones. -inf and NaN in text rows are taken as
    ``torch.max`` takes them (a NaN wins); what the other rows hold does not matter.

    Args:
        hidden_states: (B, T, D), any strides; float32, bfloat16, float16 or float64.
        text_mask: (B, T) bool, True at the prompt's valid text tokens. Pads, vision and newline tokens are not among
            them, nor is the answer: pooling it would leak the labels into the prefix.
        backend: None chooses; "cpu", "triton" or "reference" by name: it runs or it raises.

    Returns:
        guide (B, D) in the dtype of hidden_states, zeros for a sample without text; has_text (B,) bool.
        Differentiable once, in reverse mode.

    Raises:
        ValueError: shapes or devices that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> hidden_states = torch.tensor([[[1.0, 5.0], [3.0, 2.0], [9.0, 9.0]]])
    >>> text_guide_token(hidden_states, torch.tensor([[True, True, False]]))
    (tensor([[3., 5.]]), tensor([True]))
    """
    chosen = _plan(signatures(hidden_states, text_mask), backend)
    if chosen == "reference":
        guide, _ = reference.text_guide_token(hidden_states, text_mask)
    else:
        guide, _ = op.run(hidden_states, text_mask, chosen)
    return guide, text_mask.any(1)


def _request(hidden_states: Any, text_mask: Any) -> TokenRequest:
    return _check(signatures(hidden_states, text_mask))


def _check(given: tuple[Any, ...]) -> TokenRequest:
    hidden_states, text_mask = given
    arguments = Arguments("text_guide_token", query="hidden_states")
    stream = stream_of(arguments, hidden_states)
    arguments.tensor("text_mask", text_mask)
    arguments.mask("text_mask", text_mask, stream, stream.shape[:2])
    return TokenRequest(stream.device.type, stream.dtype, width=stream.shape[2])


@remember
def _plan(given: tuple[Any, ...], backend: str | None) -> str:
    return OPERATOR.select(_check(given), backend)


OPERATOR: Operator[TokenRequest] = Operator(
    "text_guide_token",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=token_launch.refuses, passed_over=experimental),
        Backend("reference"),
    ),
    _request,
    typical_request,
)
register(text_guide_token, OPERATOR)
