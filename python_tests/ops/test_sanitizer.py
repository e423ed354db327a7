"""The sanitizer's process tests the sanitized module, and no other process does."""

from __future__ import annotations

import os

from vr_kernels.ops import _native


def test_the_module_is_sanitized_where_the_sanitizer_is_loaded() -> None:
    preloaded = os.environ.get("LD_PRELOAD", "")
    loaded = "libasan" in preloaded or "libtsan" in preloaded
    assert bool(_native.module().build_info()["sanitizer"]) == loaded
