"""Which parameters a phase trains."""

import re

import pytest
from torch import nn

from python_tests.models.training import _tiny
from vr_kernels.models.training import GROUPS, set_phase

TRAINED = {1: {"projector", "vision_remember"}, 2: {"projector", "vision_remember", "language_model"}}
NAMES = {
    "vision_remember": r"^model\.language_model\.layers\.[03]\.vision_remember\.",
    "vision_tower": r"^model\.vision_tower\.",
    "projector": r"^model\.(multi_modal_projector\.|image_newline$)",
    "language_model": r"^(model\.language_model\.(?!layers\.\d\.vision_remember)|lm_head\.)",
}


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("train_vision_tower", [False, True])
def test_a_phase_trains_its_modules_and_no_others(phase: int, train_vision_tower: bool) -> None:
    model = _tiny.model()
    sizes = set_phase(model, phase, train_vision_tower=train_vision_tower)
    expected = TRAINED[phase] | ({"vision_tower"} if train_vision_tower else set())
    for name, parameter in model.named_parameters():
        (group,) = (group for group, names in NAMES.items() if re.search(names, name))
        assert parameter.requires_grad == (group in expected), name
    assert list(sizes) == list(GROUPS)
    assert {group for group, size in sizes.items() if size.trained} == expected
    assert sum(size.parameters for size in sizes.values()) == sum(p.numel() for p in model.parameters())


def test_the_second_phase_follows_the_first() -> None:
    model = _tiny.model()
    set_phase(model, 1)
    assert set_phase(model, 2) == set_phase(_tiny.model(), 2)


def test_a_model_without_blocks_trains_its_projector() -> None:
    sizes = set_phase(_tiny.model(vr_layers=[]), 1)
    assert {group for group, size in sizes.items() if size.trained} == {"projector"}


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="phase is 3; it must be 1 or 2"):
        set_phase(_tiny.model(), 3)
    with pytest.raises(ValueError, match=r"parameter 'head\.weight' is of no group; it must have a part of"):
        set_phase(nn.ModuleDict({"head": nn.Linear(2, 2)}), 1)
    with pytest.raises(ValueError, match="phase 1 trains vision_remember, projector, and the model has none of them"):
        set_phase(nn.ModuleDict({"language_model": nn.Linear(2, 2)}), 1)
