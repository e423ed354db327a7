"""What the documentation's pages ask a reader to have: small random models in the place of pretrained ones."""

from collections.abc import Callable
from typing import Any

GIVEN: dict[str, Callable[[], dict[str, Any]]] = {}
