"""These tests need a GPU: elsewhere each is skipped, and says so."""

from __future__ import annotations

import os

# What cuBLAS needs to be deterministic; read when the process first uses it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
