"""``TrainConfig``: every setting of a training run, read from YAML and checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vr_kernels.models.training.phases import GROUPS, PHASES


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one phase. Paths are relative to the working directory.

    Args:
        model: a folder or hub name that ``from_pretrained`` loads, with its processor: LLaVA-VR, or stock
            LLaVA-NeXT, whose phase 1 can take no batch of text alone.
        data: a JSON or JSON-lines file in LLaVA's format (``ConversationDataset``).
        images: the folder that its image names are relative to. Only data without images may leave it out.
        output_dir: gets ``checkpoint-N`` folders, ``model`` in the end, ``log.json``, ``loss.png`` and, if there are
            any, ``bad_samples.jsonl``.
        phase: 1 trains projector and Vision Remember, 2 the language model as well (``set_phase``).
        learning_rate: of AdamW. The papers have 1e-3 in phase 1 and 2e-5 (v1) or 2e-4 (v2) in phase 2.
        global_batch_size: samples a step, over all processes. The papers have 256 in phase 1 and 32 in phase 2.
        learning_rates: of single groups of modules in place of ``learning_rate``, such as ``{projector: 1e-4}``.
        batch_size_per_device: samples that a process holds at a time; their gradients add up to a step's.
        train_vision_tower: trains the encoder too, as v1 does for its comparison with other models.
        chat_template: "chatml", "vicuna" or "plain" (image and caption, LLaVA's alignment), or a Jinja file. Left out,
            the model's own.
        image_grid_pinpoints: of LLaVA-VR: the sizes (height, width) of tiled images that AnyRes chooses from; [] is one
            tile an image, as in the papers' phase 1. Left out, the model's own.
        max_length: tokens; what follows is cut off. A sample that would lose image tokens is a bad one.
        on_bad_sample: "stop" ends the run at a missing or corrupt image or a malformed record; "skip" takes the next
            good sample in its place, and records and counts it.
        epochs: passes over the data. max_steps: in place of epochs, where it is given.
        warmup_ratio: share of the steps in which the learning rate rises; a cosine to zero follows.
        weight_decay: of AdamW, on matrices alone. max_grad_norm: gradients are clipped to it.
        precision: "bf16" computes in autocast and keeps the weights in float32; "fp32" does all in float32.
        gradient_checkpointing: activations are computed again in the backward pass (non-reentrant).
        workers: processes that load samples. seed: of the order of the samples and of all else that is drawn.
        save_steps: steps from one checkpoint to the next. keep_checkpoints: how many stay; left out, all.
        logging_steps: steps from one line of the log to the next.
        cpu: trains on the processor even where there is a GPU.

    Raises:
        ValueError: a value that is not allowed.

    >>> TrainConfig(model="llava-vr", data="cc558k.json", images="cc558k", output_dir="phase1", phase=1,
    ...             learning_rate=1e-3, global_batch_size=256).warmup_ratio
    0.03
    """

    model: str
    data: str
    output_dir: str
    phase: int
    learning_rate: float
    global_batch_size: int
    images: str | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    batch_size_per_device: int = 1
    train_vision_tower: bool = False
    chat_template: str | None = None
    image_grid_pinpoints: list[list[int]] | None = None
    max_length: int | None = None
    on_bad_sample: str = "stop"
    epochs: float = 1.0
    max_steps: int | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "bf16"
    gradient_checkpointing: bool = False
    workers: int = 4
    seed: int = 0
    save_steps: int = 500
    keep_checkpoints: int | None = None
    logging_steps: int = 10
    cpu: bool = False

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            fits, allowed = _RULES[setting.name]
            optional = setting.default is None
            if not (fits(value) or (optional and value is None)):
                allowed += " or left out" * optional
                raise ValueError(f"TrainConfig: {setting.name} is {value!r}; it must be {allowed}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Raises ValueError for an unknown name, listing the known, and for one that is missing."""
        names = [setting.name for setting in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(f"TrainConfig: {name!r} is no setting; it must be one of {', '.join(names)}")
        for setting in dataclasses.fields(cls):
            required = setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
            if required and setting.name not in values:
                raise ValueError(f"TrainConfig: {setting.name} is missing; it must be {_RULES[setting.name][1]}")
        return cls(**{name: _read_numbers(value) if _is_number(name) else value for name, value in values.items()})

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Raises ValueError for a file that cannot be read or holds no mapping, and as ``from_dict``."""
        import yaml  # type: ignore[import-untyped]

        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as reason:
            raise ValueError(f"TrainConfig: {path} cannot be read: {reason.strerror}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as reason:
            raise ValueError(f"TrainConfig: {path} is not YAML: {' '.join(str(reason).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"TrainConfig: {path} holds {type(values).__name__}; it must hold settings, name: value")
        return cls.from_dict(values)


def _finite(value: object) -> bool:
    # Compared, since math.isfinite fails at an integer that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _text() -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value != "", "a text that is not empty"


def _flag() -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, bool), "true or false"


def _integer(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and value >= least, f"an integer of at least {least}"


def _positive() -> tuple[Callable[[Any], bool], str]:
    return lambda value: _finite(value) and value > 0, "a positive number"


def _one_of(*allowed: Any) -> tuple[Callable[[Any], bool], str]:
    # True equals 1, and names no phase.
    return lambda value: any(type(value) is type(a) and value == a for a in allowed), " or ".join(map(repr, allowed))


def _rates(value: Any) -> bool:
    return isinstance(value, Mapping) and all(n in GROUPS and _finite(rate) and rate > 0 for n, rate in value.items())


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        for size in value
    )


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": _text(),
    "data": _text(),
    "output_dir": _text(),
    "phase": _one_of(*PHASES),
    "learning_rate": _positive(),
    "global_batch_size": _integer(1),
    "images": _text(),
    "learning_rates": (_rates, f"a positive number by group, the groups being {', '.join(GROUPS)}"),
    "batch_size_per_device": _integer(1),
    "train_vision_tower": _flag(),
    "chat_template": _text(),
    "image_grid_pinpoints": (_sizes, "a list of [height, width] in pixels"),
    "max_length": _integer(1),
    "on_bad_sample": _one_of("stop", "skip"),
    "epochs": _positive(),
    "max_steps": _integer(1),
    "warmup_ratio": (lambda value: _finite(value) and 0 <= value < 1, "a number in [0, 1)"),
    "weight_decay": (lambda value: _finite(value) and value >= 0, "a number of at least 0"),
    "max_grad_norm": _positive(),
    "precision": _one_of("bf16", "fp32"),
    "gradient_checkpointing": _flag(),
    "workers": _integer(0),
    "seed": _integer(0),
    "save_steps": _integer(1),
    "keep_checkpoints": _integer(1),
    "logging_steps": _integer(1),
    "cpu": _flag(),
}


def _is_number(name: str) -> bool:
    return TrainConfig.__annotations__[name] in ("float", "Mapping[str, float]")


def _read_numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-3, which has no point, as text."""
    if isinstance(value, dict):
        return {name: _read_numbers(entry) for name, entry in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
