"""``scatter_add_tokens``: the residual of the vision tokens back into the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.ops import _native
from vr_kernels.ops._arguments import Arguments, remember, signatures
from vr_kernels.ops._dispatch import Backend, Operator, experimental, register
from vr_kernels.ops._registration import stand_in
from vr_kernels.ops._tokens import TokenRequest, check_token_rows, stream_of, token_rows_of, typical_request
from vr_kernels.ops._triton import token_launch
from vr_kernels.ops.scatter_add_tokens import op, reference

__all__ = ["scatter_add_tokens"]


def scatter_add_tokens(
    hidden_states: Tensor, token_rows: Tensor, update: Tensor, *, backend: str | None = None
) -> Tensor:
    """A new stream: ``update`` added to the rows that ``token_rows`` names, every other row as it was, bit for bit.

    The residual of Vision Remember's layers: the sum is rounded once, to the stream's dtype. Adding zero changes no
    bit, not even the sign of a zero: a layer that starts at zero starts as the identity. The input is never written.

    Args:
        hidden_states: (B, T, D), any strides; float32, bfloat16, float16 or float64.
        token_rows: (I, N) int32 or int64, row b*T + t of hidden_states, -1 = padding. On the CPU values are checked,
            and a row may stand once; elsewhere a number that is no row counts as padding, and of a row named twice it
            is undefined which update it gets.
        update: (I, N, D) in the dtype of hidden_states, to which autocast casts it.
        backend: None chooses; "cpu", "triton" or "reference" by name: it runs or it raises.

    Returns:
        (B, T, D) in the dtype of hidden_states. Differentiable once, in reverse mode, in hidden_states and update.

    Raises:
        ValueError: shapes, devices or index values that do not fit; a backend that is unknown or cannot run the call.
        TypeError: an argument that is no tensor, or of another dtype than allowed.
        RuntimeError: forward-mode or second differentiation outside ``backend="reference"``.

    >>> import torch
    >>> scatter_add_tokens(torch.zeros(1, 3, 2), torch.tensor([[2, -1]]), torch.ones(1, 2, 2))
    tensor([[[0., 0.],
             [0., 0.],
             [1., 1.]]])
    """
    if _is_cast(hidden_states, update):
        update = update.to(hidden_states.dtype)
    chosen = _plan(signatures(hidden_states, token_rows, update), backend)
    if chosen != "reference":
        out: Tensor = op.run(hidden_states, token_rows, update, chosen)
        return out
    check_token_rows("scatter_add_tokens", token_rows, hidden_states.shape[0] * hidden_states.shape[1])
    return reference.scatter_add_tokens(hidden_states, token_rows, update)


def _is_cast(hidden_states: Any, update: Any) -> bool:
    tensors = isinstance(hidden_states, Tensor) and isinstance(update, Tensor)
    return tensors and torch._C._is_any_autocast_enabled()


def _request(hidden_states: Any, token_rows: Any, update: Any) -> TokenRequest:
    if _is_cast(hidden_states, update):
        update = stand_in(update, hidden_states.dtype)
    return _check(signatures(hidden_states, token_rows, update))


def _check(given: tuple[Any, ...]) -> TokenRequest:
    hidden_states, token_rows, update = given
    arguments = Arguments("scatter_add_tokens", query="hidden_states")
    stream = stream_of(arguments, hidden_states)
    expected = (*token_rows_of(arguments, token_rows, stream), stream.shape[2])
    got = arguments.companion("update", update, stream)
    if got.shape != expected:
        raise arguments.error(f"update has shape {got.shape}; it must be (I, N, D) = {expected}")
    return TokenRequest(stream.device.type, stream.dtype, width=stream.shape[2])


@remember
def _plan(given: tuple[Any, ...], backend: str | None) -> str:
    return OPERATOR.select(_check(given), backend)


OPERATOR: Operator[TokenRequest] = Operator(
    "scatter_add_tokens",
    (
        Backend("cpu", refuses=_native.refuses_cpu),
        Backend("triton", refuses=token_launch.refuses, passed_over=experimental),
        Backend("reference"),
    ),
    _request,
    typical_request,
)
register(scatter_add_tokens, OPERATOR)
