"""``examples`` is no installed package: it is found from the root of the repository, after all that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
