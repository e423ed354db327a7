"""Windowed attention in Triton. Only ``launch`` and ``support`` may be imported without it."""
