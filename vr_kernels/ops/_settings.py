"""What the environment asks of every operator. Read once, when the package is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """VR_KERNELS_LOG, VR_KERNELS_BACKEND and VR_KERNELS_CHECK; docs/debugging.md says what each may be.

    Args:
        log: "stderr", or the file that a line a call is added to; None: no log.
        backends: by operator, or under "" for every operator that has a backend of that name.
        check: the folder in which a call that differs from the reference is saved; None: nothing is compared.

    >>> Settings.of({"VR_KERNELS_BACKEND": "reference,local_attention=cpu"}).backends
    {'': 'reference', 'local_attention': 'cpu'}
    """

    log: str | None = None
    backends: dict[str, str] = field(default_factory=dict)
    check: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        log = _switch(environment.get("VR_KERNELS_LOG", ""), "stderr")
        check = _switch(environment.get("VR_KERNELS_CHECK", ""), ".")
        asked = [part.strip() for part in environment.get("VR_KERNELS_BACKEND", "").split(",") if part.strip()]
        pairs = [part.rpartition("=") for part in asked]
        return cls(log, {operator: backend for operator, _, backend in pairs}, check)

    @property
    def observes(self) -> bool:
        """Whether calls are watched at all."""
        return self.log is not None or self.check is not None


def _switch(value: str, on: str) -> str | None:
    """None where it is off, ``on`` where it is just switched on, otherwise the value."""
    return None if value in ("", "0") else on if value == "1" else value


SETTINGS = Settings.of(os.environ)
