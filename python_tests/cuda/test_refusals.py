"""What the CUDA backend says of calls that it cannot run, and of devices that its build has no code for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vr_kernels
from python_tests._cases import attention_call
from vr_kernels.ops import _cuda, _native
from vr_kernels.ops._cuda import lacks_architecture
from vr_kernels.ops._inverse_index import readers_of_rows
from vr_kernels.ops._windows import WindowRequest, Windows

BUILT = ["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]


def request(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, slots: int = 9, **options: Any) -> WindowRequest:
    return WindowRequest(device, dtype, windows=Windows((1,), (9,), None, slots), heads=1, channels=8, **options)


def test_tensors_on_the_cpu_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="backend='cuda' cannot run this call: the CUDA kernels take CUDA tensors"):
        vr_kernels.local_attention(**attention_call(), backend="cuda")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(dtype=torch.float64), "float32, bfloat16 and float16, not torch.float64"),
        (request(slots=65), "windows of up to 64 keys, these have 65"),
        (request(levels=9), "up to 8 levels, these are 9"),
        (request(wrapped="DTensor"), "a weight is a DTensor"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused_in_words(asked: WindowRequest, words: str) -> None:
    assert words in str(_cuda.refuses_windows(asked))


def test_a_module_without_cuda_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def build_info() -> dict[str, Any]:
            return {"cuda": False}

    monkeypatch.setattr(_native, "module", Module)
    assert "built without a CUDA compiler" in str(_cuda.refuses(request()))


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)])
def test_devices_that_the_build_has_code_for_are_served(capability: tuple[int, int]) -> None:
    assert lacks_architecture(capability, BUILT) is None


@pytest.mark.parametrize("capability", [(7, 5), (11, 0)])
def test_other_devices_are_refused_with_the_list_of_architectures(capability: tuple[int, int]) -> None:
    reason = str(lacks_architecture(capability, BUILT))
    assert "sm_80, sm_90, sm_100, sm_120, compute_120" in reason
    assert "the device is sm_{}{}".format(*capability) in reason


def test_code_for_one_architecture_alone_serves_no_other() -> None:
    assert lacks_architecture((9, 0), ["sm_90a"]) is None
    assert lacks_architecture((10, 3), ["sm_100a"]) is not None
    assert lacks_architecture((12, 0), ["compute_90a"]) is not None


def test_readers_come_in_order_and_absent_slots_nowhere() -> None:
    index = torch.tensor([[2, -1, 2], [0, 5, 2], [3, 0, -1]], dtype=torch.int32)  # row 5 is outside the table
    readers, first = readers_of_rows(index, 4)
    found = [readers[start:end].tolist() for start, end in itertools.pairwise(first)]
    assert found == [[3, 7], [], [0, 2, 5], [6]]
