"""What is being done, and for how long already: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 2.0


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is being done now. Written to stderr, and gone from a terminal in the end."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        told = -SECONDS_BETWEEN_LINES

        def tell(what: str) -> None:
            nonlocal told
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                console.print(f"{title}: {what}", markup=False, soft_wrap=True)

        yield tell
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # Redrawn rarely: times are being taken meanwhile.
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what: bar.update(task, description=f"{title}: {what}")
