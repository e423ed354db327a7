"""Sizes at which the kernels that do smaller calls in one thread take several."""

from __future__ import annotations

from python_tests._operators import Draw, Subject

STREAM = {"length": 97, "width": 1024}
LARGER: dict[str, Draw] = {
    "text_guide_token": STREAM,
    "gather_tokens": STREAM | {"tokens": 40, "norm": True, "guide": True},
    "scatter_add_tokens": STREAM | {"tokens": 40},
    "attention_importance": {"tokens": 577, "width": 64},
    "patch_linear": {"patches": (16, 16), "widths": (64, 64)},
}


def larger(subject: Subject) -> Draw:
    """All arguments together, at such a size."""
    return subject.mixes["everything"] | LARGER.get(subject.name, {})
