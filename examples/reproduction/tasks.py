"""The tasks by name."""

from __future__ import annotations

from examples.reproduction.charts import Charts
from examples.reproduction.digits import DigitGrid
from examples.reproduction.task import Task
from examples.reproduction.text import Photographs, RenderedText

TASKS: dict[str, Task] = {task.name: task for task in (DigitGrid(), Charts(), RenderedText(), Photographs())}


def find_task(name: str) -> Task:
    """Raises ValueError for a name that no task has."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    return TASKS[name]
