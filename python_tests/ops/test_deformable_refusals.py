"""``deformable_attention``: which backend it gets where the usual one is unwelcome, and what it refuses in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vr_kernels
from python_tests._cases import Call
from python_tests._deformable_cases import deformable_call
from vr_kernels.ops.deformable_attention import native

TWO_LEVELS = ((4, 6), (3, 5))


def test_deterministic_algorithms_pass_over_grid_sample_on_cuda() -> None:
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
    "backend is 'cuda'; it must be None or one of cpu, triton, grid_sample, reference": (
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
    call = deformable_call(sizes=TWO_LEVELS)
    with pytest.raises(kind) as caught:
        vr_kernels.deformable_attention(**(call | change(call)))
    assert str(caught.value).startswith(f"deformable_attention: {words}")
