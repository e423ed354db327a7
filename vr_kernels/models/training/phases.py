"""Which parameters a phase of training changes, told from their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

# A parameter belongs to the first group that has a part of its dotted name: the blocks of Vision Remember are children
# of the language model's layers.
GROUPS: dict[str, tuple[str, ...]] = {
    "vision_remember": ("vision_remember",),
    "vision_tower": ("vision_tower",),
    "projector": ("multi_modal_projector", "image_newline"),
    "language_model": ("language_model", "lm_head"),
}

# Vision Remember v1 §5.1 and v2 §4.1: alignment, then visual instruction tuning.
PHASES: dict[int, tuple[str, ...]] = {
    1: ("vision_remember", "projector"),
    2: ("vision_remember", "projector", "language_model"),
}


class GroupSize(NamedTuple):
    """How many parameters a group has, and whether they are trained."""

    parameters: int
    trained: bool


def set_phase(model: nn.Module, phase: int, *, train_vision_tower: bool = False) -> dict[str, GroupSize]:
    """Lets the parameters of a phase require gradients, and no other ones.

    Args:
        model: a ``LlavaNextForConditionalGeneration``, with Vision Remember (LLaVA-VR) or without.
        phase: 1, projector and Vision Remember; 2, the language model as well.
        train_vision_tower: the encoder as well, in either phase.

    Returns:
        The size of each group that the model has, and whether it is trained.

    Raises:
        ValueError: no such phase; a parameter that belongs to no group; a model of which nothing would be trained.

    >>> from torch import nn
    >>> model = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 3), "language_model": nn.Linear(3, 3)})
    >>> set_phase(model, 1)
    {'projector': GroupSize(parameters=9, trained=True), 'language_model': GroupSize(parameters=12, trained=False)}
    """
    if phase not in PHASES:
        raise ValueError(f"set_phase: phase is {phase!r}; it must be {' or '.join(map(str, PHASES))}")
    trained = PHASES[phase] + ("vision_tower",) * train_vision_tower
    sizes: dict[str, GroupSize] = {}
    for _, group, parameter in grouped_parameters(model):
        parameter.requires_grad_(group in trained)
        before = sizes.get(group, GroupSize(0, group in trained))
        sizes[group] = before._replace(parameters=before.parameters + parameter.numel())
    if not any(size.trained for size in sizes.values()):
        raise ValueError(f"set_phase: phase {phase} trains {', '.join(trained)}, and the model has none of them")
    return {group: sizes[group] for group in GROUPS if group in sizes}


def grouped_parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, group and parameter, of all parameters. Raises ValueError for one that belongs to no group."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        group = next((group for group, owned in GROUPS.items() if any(part in parts for part in owned)), None)
        if group is None:
            known = ", ".join(part for owned in GROUPS.values() for part in owned)
            raise ValueError(f"set_phase: the parameter {name!r} is of no group; it must have a part of {known}")
        yield name, group, parameter
