"""The operators under test: the public function, its oracle, how calls are drawn, what every backend is tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import vr_kernels
from python_tests import _importance, _oracle, _patch_cases, _token_cases
from python_tests._cases import Call, attention_call, cross_attention_call
from python_tests._deformable_cases import deformable_attention, deformable_call
from python_tests._errors import assert_obeys_the_error_rule
from vr_kernels.ops._dispatch import operators

Draw = dict[str, Any]  # what a call is drawn with


@dataclass(frozen=True)
class Subject:
    """An operator with all its outputs asked for."""

    name: str
    function: Callable[..., Any]
    oracle: Callable[..., Any]
    call: Callable[..., Call]
    outputs: dict[str, bool]
    mixes: dict[str, Draw]  # arguments together; "everything": all that go together, with rows that share and lack keys
    sizes: tuple[Draw, Draw, Draw]  # of which none has two equal sizes
    # The coverage matrix: how tokens and features are laid out, and each option alone with the outputs asked for.
    forms: dict[str, Draw]
    options: dict[str, tuple[Draw, dict[str, bool]]]
    autocast: frozenset[str] = frozenset()  # the arguments that autocast casts
    chosen: str = "cpu"  # the backend of a small float32 call on the CPU
    draws: int = 3  # of a cell of the matrix: more where a call's results are few, lest the largest error be luck
    interpreted: int = 3  # the same in Triton's interpreter, where a call takes a hundred times as long

    def run(self, backend: str | None) -> Callable[..., tuple[Tensor, ...]]:
        """The operator by a backend, its outputs a tuple even where there is one."""

        def call(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
            result = self.function(*arguments, **named, backend=backend, **self.outputs)
            return result if isinstance(result, tuple) else (result,)

        return call

    def assert_obeys_the_error_rule(self, backend: str | None, draw: Callable[[int], Call], **options: Any) -> None:
        """A backend beside the reference in the same dtype; the oracle's loops in float64 are exact."""
        assert_obeys_the_error_rule(self.run(backend), self.run("reference"), self.oracle, draw, **options)


RAGGED = {"ragged": True, "batch": 1, "windows": (3, 2), "window": (2, 3)}
WINDOW_FORMS: dict[str, Draw] = {"grid": {}, "indexed": {"indexed": True}, "ragged": RAGGED}
WINDOW_SIZES = (
    {"batch": 3, "windows": (5, 7)},
    {"batch": 2, "windows": (11, 5)},
    {"batch": 9, "windows": (3, 4)},
)

LOCAL_ATTENTION = Subject(
    "local_attention",
    vr_kernels.local_attention,
    _oracle.local_attention,
    attention_call,
    {"return_lse": True, "return_attention": True},
    {
        "plain": {},
        "grid": {"value_width": 13, "bias": "shared", "saliency": True},
        "indexed": {"indexed": True, "width": (3, 5), "bias": "per window", "saliency": True},
        "everything": {"ragged": True, "value_width": 12, "bias": "shared", "saliency": True, "empty": 4},
    },
    WINDOW_SIZES,
    WINDOW_FORMS,
    {
        "plain": ({"kv_heads": 4}, {}),
        "saliency": ({"saliency": True}, {}),
        "bias": ({"bias": "per window"}, {}),
        "GQA": ({"kv_heads": 2, "value_width": 5}, {}),
        "levels": ({"width": (5, 8)}, {}),
        "lse": ({}, {"return_lse": True}),
        "weights": ({}, {"return_attention": True}),
    },
    frozenset({"query", "key", "value"}),
    interpreted=2,
)
LOCAL_CROSS_ATTENTION = Subject(
    "local_cross_attention",
    vr_kernels.local_cross_attention,
    _oracle.local_cross_attention,
    cross_attention_call,
    {"return_attention": True},
    {
        "plain": {},
        "grid": {"norm": "level", "biases": True, "bias": "shared", "saliency": "value"},
        "indexed": {"indexed": True, "norm": "all", "bias": "per window", "saliency": "feature"},
        "everything": {
            "ragged": True, "norm": "level", "biases": True, "bias": "shared", "saliency": "value", "empty": 4,
        },
    },
    WINDOW_SIZES,
    WINDOW_FORMS,
    {
        "plain": ({}, {}),
        "saliency": ({"saliency": "value", "biases": True}, {}),
        "bias": ({"bias": "shared", "biases": True}, {}),
        "LayerNorm": ({"norm": "level"}, {}),
        "weights": ({}, {"return_attention": True}),
    },
    frozenset({"query", "features", "key_weight", "value_weight"}),
    interpreted=2,
)  # fmt: skip

TOKEN_SIZES = ({"batch": 5, "tokens": 13}, {"batch": 7, "tokens": 11}, {"batch": 9, "tokens": 17})

ATTENTION_IMPORTANCE = Subject(
    "attention_importance",
    vr_kernels.attention_importance,
    _importance.attention_importance,
    _importance.importance_call,
    {},
    {
        "plain": {},
        "packed": {"packed": True, "reduce_heads": None},
        "scores": {"mask": True, "normalize": "none", "reduce_rows": "sum"},
        "everything": {"mask": True, "reduce_heads": "sum", "scale": 0.7},
    },
    TOKEN_SIZES,
    {"padded": {}, "masked": {"mask": True}, "packed": {"packed": True, "batch": 3}},
    {
        "plain": ({"kv_heads": 4}, {}),
        "GQA": ({"kv_heads": 2}, {}),
        "one row": ({"rows": 1}, {}),
        "scores": ({"normalize": "none"}, {}),
        "heads": ({"reduce_heads": None}, {}),
    },
    frozenset({"query_rows", "key"}),
    draws=16,
)
ATTENTION_RECEIVED = Subject(
    "attention_received",
    vr_kernels.attention_received,
    _importance.attention_received,
    _importance.received_call,
    {},
    {
        "plain": {},
        "causal": {"causal": True, "reduce_heads": None},
        "packed": {"packed": True},
        "everything": {"packed": True, "causal": True, "lse": True, "reduce_heads": "sum", "scale": 0.3},
    },
    TOKEN_SIZES,
    {"padded": {}, "packed": {"packed": True, "batch": 3}},
    {
        "plain": ({"kv_heads": 4}, {}),
        "GQA": ({"kv_heads": 2}, {}),
        "causal": ({"causal": True}, {}),
        "lse": ({"lse": True}, {}),
        "heads": ({"reduce_heads": None}, {}),
    },
    frozenset({"query", "key"}),
    chosen="blocked",
    draws=16,
)

STREAM_SIZES = (
    {"batch": 3, "length": 13, "width": 8, "tokens": 5},
    {"batch": 2, "length": 17, "width": 11, "tokens": 3},
    {"batch": 5, "length": 12, "width": 6, "tokens": 4},
)
TEXT_GUIDE_TOKEN = Subject(
    "text_guide_token",
    vr_kernels.text_guide_token,
    _token_cases.text_guide_token,
    _token_cases.text_guide_call,
    {},
    {"plain": {}, "everything": {"ties": True}},
    tuple({k: v for k, v in sizes.items() if k != "tokens"} for sizes in STREAM_SIZES),
    {"stream": {}},
    {"plain": ({}, {}), "ties": ({"ties": True}, {})},
)
GATHER_TOKENS = Subject(
    "gather_tokens",
    vr_kernels.gather_tokens,
    _token_cases.gather_tokens,
    _token_cases.gather_call,
    {},
    {"plain": {}, "everything": {"norm": True, "guide": True, "images": 7}},
    STREAM_SIZES,
    {"image a sample": {}, "image_sample": {"images": 5}},
    {"plain": ({}, {}), "norm": ({"norm": True}, {}), "guide": ({"guide": True, "norm": True}, {})},
)
SCATTER_ADD_TOKENS = Subject(
    "scatter_add_tokens",
    vr_kernels.scatter_add_tokens,
    _token_cases.scatter_add_tokens,
    _token_cases.scatter_call,
    {},
    {"plain": {}, "everything": {"images": 7}},
    STREAM_SIZES,
    {"image a sample": {}, "images": {"images": 5}},
    {"plain": ({}, {})},
)

DEFORMABLE_ATTENTION = Subject(
    "deformable_attention",
    vr_kernels.deformable_attention,
    deformable_attention,
    deformable_call,
    {},
    {
        "plain": {"sizes": ((4, 6), (3, 5))},
        "everything": {"sizes": ((4, 6), (3, 5), (1, 2)), "outside": 0.6, "auxiliary": None},
    },
    (
        {"batch": 5, "queries": 7, "heads": 6, "sizes": ((11, 13), (10, 9))},
        {"batch": 2, "queries": 11, "heads": 9, "sizes": ((5, 6), (12, 7))},
        {"batch": 7, "queries": 3, "heads": 2, "sizes": ((9, 5), (6, 11))},
    ),
    {"one level": {}, "levels": {"sizes": ((3, 5), (1, 2))}},
    {"plain": ({}, {}), "places in the values' dtype": ({"auxiliary": None}, {})},
    frozenset({"value"}),
)

PATCH_LINEAR = Subject(
    "patch_linear",
    vr_kernels.patch_linear,
    _patch_cases.patch_linear,
    _patch_cases.patch_call,
    {},
    {
        "plain": {},
        "levels": {"widths": (6, 4, 9), "bias": True},
        "everything": {"widths": (6, 4, 9), "bias": True, "activation": "gelu"},
    },
    (
        {"batch": 3, "patches": (5, 7)},
        {"batch": 2, "patches": (8, 6)},
        {"batch": 5, "patches": (4, 9)},
    ),
    {"one level": {}, "levels": {"widths": (6, 4, 9)}},
    {
        "1x1": ({"kernel": 1}, {}),
        "2x2": ({}, {}),
        "3x3": ({"kernel": 3}, {}),
        "bias": ({"bias": True}, {}),
        "GELU": ({"bias": True, "activation": "gelu"}, {}),
    },
    frozenset({"features", "weight"}),
    chosen="linear",
)

WINDOWED = [LOCAL_ATTENTION, LOCAL_CROSS_ATTENTION]
IMPORTANCE = [ATTENTION_IMPORTANCE, ATTENTION_RECEIVED]
TOKENS = [TEXT_GUIDE_TOKEN, GATHER_TOKENS, SCATTER_ADD_TOKENS]
SUBJECTS = [*WINDOWED, *IMPORTANCE, *TOKENS, DEFORMABLE_ATTENTION, PATCH_LINEAR]


def backends_of(subject: Subject, device: str = "cpu") -> list[str]:
    """What can run on this machine beside the reference."""
    operator = next(operator for operator in operators() if operator.name == subject.name)
    request = operator.typical(device, torch.float32)
    return [b.name for b in operator.backends if b.name != "reference" and b.refuses(request) is None]


def over_backends(*others: str | None, subjects: Sequence[Subject] = SUBJECTS) -> Any:
    """Parametrises a test over (subject, backend): every backend that can run here, and ``others`` by name."""
    runs = [(subject, backend) for subject in subjects for backend in [*backends_of(subject), *others]]
    return pytest.mark.parametrize(
        ("subject", "backend"), [pytest.param(*run, id=f"{run[0].name}-{run[1]}") for run in runs]
    )


def over(subjects: Sequence[Subject]) -> Any:
    return pytest.mark.parametrize("subject", subjects, ids=lambda subject: subject.name)


over_operators = over(SUBJECTS)
over_windowed = over(WINDOWED)
over_mixes = pytest.mark.parametrize(
    ("subject", "mix"),
    [pytest.param(s, mix, id=f"{s.name}-{name}") for s in SUBJECTS for name, mix in s.mixes.items()],
)
