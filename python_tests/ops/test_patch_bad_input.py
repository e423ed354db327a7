"""What ``patch_linear`` refuses, and in which words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import vr_kernels
from python_tests._cases import Call
from python_tests._patch_cases import patch_call

Refusals = dict[str, Callable[[Call], Call]]
VALUES: Refusals = {
    "features is an empty sequence; it must hold at least one level": lambda c: {"features": []},
    "features has shape (2, 4, 6); it must be (B, H, W, D) a level": lambda c: {"features": c["features"][0][..., 0]},
    "features[1] has shape (2, 4, 6, 0); its width":
        lambda c: {"features": [c["features"][0], c["features"][1][..., :0]]},
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
    "features[0] is torch.int64; it must be float32": lambda c: {"features": [x.long() for x in c["features"]]},
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
