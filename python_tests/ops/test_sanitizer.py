"""The sanitizer's process tests the sanitized module, and no other process does."""

from __future__ import annotations

import os

from vr_kernels.ops import _native


def test_the_module_is_sanitized_where_the_sanitizer_is_loaded() -> None:
    loaded = "libasan" in os.environ.get("LD_PRELOAD", "")
    assert bool(_native.module().build_info()["sanitizer"]) == loaded
