"""The blocks of a patched model in a folder of their own, without the model."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from pathlib import Path
from typing import Any, TypeVar

from torch import Size, Tensor, nn

from vr_kernels.integrations.vision_remember.apply import TAKEN, find_inner, install, patched, plan
from vr_kernels.integrations.vision_remember.context import NAME
from vr_kernels.integrations.vision_remember.patch import PATCH, Patch
from vr_kernels.nn import VisionRemember, VisionRememberConfig

M = TypeVar("M", bound=nn.Module)

FILE = "vision_remember.safetensors"
FORMAT = "1"


def save_vision_remember(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the blocks' weights and choices to ``folder/vision_remember.safetensors``.

    The choices stand in that file's header, as JSON: so one renaming puts both in place at once, and a run that is cut
    off leaves the file of before, or none. Of a PEFT model the blocks of the active adapter are written.

    Raises:
        ValueError: another type of model, or one without blocks; blocks that were folded or adapted, whose weights are
            not those of a new block.
        ImportError: safetensors is missing, which transformers brings along.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> from vr_kernels import apply_vision_remember
    >>> model = apply_vision_remember(model, layers=(1,), num_heads=4)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_vision_remember(model, folder)
    ...     os.listdir(folder)
    ['vision_remember.safetensors']
    """
    from safetensors.torch import save

    inner = find_inner("save_vision_remember", model)
    patch = patched(inner, "save_vision_remember")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(inner, patch).items()}
    expected = set(_shapes(patch))
    if set(state) != expected:
        raise ValueError(
            f"save_vision_remember: the blocks have the weights {_some(set(state) ^ expected)}, which new blocks have "
            "not, or lack them; save before fold_(), and merge adapters in them first"
        )
    header = {"format": FORMAT, "model_type": inner.config.model_type, "choices": json.dumps(dataclasses.asdict(patch))}
    _write(Path(folder), save(state, metadata=header))


def load_vision_remember(model: M, folder: str | os.PathLike[str]) -> M:
    """Give a model the blocks that ``save_vision_remember`` wrote, bit for bit where its dtype is that of the file.

    A model without blocks is patched as the saved one was; blocks that it has must have been chosen alike.

    Raises:
        FileNotFoundError: the folder has no such file. ValueError: another type of model, or other choices; blocks that
            were folded or adapted; a file that was not written so. Everything is checked before the model changes.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> config = LlavaConfig(vision_config=vision, text_config=text)
    >>> from vr_kernels import apply_vision_remember
    >>> model = apply_vision_remember(LlavaForConditionalGeneration(config), layers=(1,), num_heads=4)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_vision_remember(model, folder)
    ...     again = load_vision_remember(LlavaForConditionalGeneration(config), folder)
    >>> again.state_dict().keys() == model.state_dict().keys()
    True
    """
    from safetensors import SafetensorError, safe_open

    inner = find_inner("load_vision_remember", model)
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"load_vision_remember: {path} is not there; save_vision_remember writes it")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as reason:
        raise ValueError(f"load_vision_remember: {path} is no safetensors file, or not whole: {reason}") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"load_vision_remember: {path} was not written by save_vision_remember of this version")
    if header.get("model_type") != inner.config.model_type:
        raise ValueError(
            f"load_vision_remember: the blocks are of a model of type {header.get('model_type')!r}, this one is "
            f"{inner.config.model_type!r}"
        )
    try:
        saved = _patch(json.loads(header["choices"]))
        shapes = _shapes(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as reason:  # of what is missing, no choice, or beyond torch
        raise ValueError(f"load_vision_remember: the choices in {path} are none of a block: {reason}") from None
    if set(state) != set(shapes):
        raise ValueError(f"load_vision_remember: {path} lacks {_some(set(shapes) ^ set(state))}, or has it too much")
    for name, tensor in state.items():
        if tensor.shape != shapes[name] or not tensor.is_floating_point():
            raise ValueError(
                f"load_vision_remember: {name} in {path} is {tensor.dtype} {tuple(tensor.shape)}; it must be floating "
                f"and {tuple(shapes[name])}"
            )
    own = getattr(inner, PATCH, None)
    chosen = _planned(inner, saved) if own is None else own
    if chosen != saved:
        raise ValueError(f"load_vision_remember: this model's blocks are {chosen}, those in {path} are {saved}")
    if own is not None:
        here = {name: tensor.shape for name, tensor in _state(inner, saved).items()}
        if here != shapes:
            raise ValueError(
                f"load_vision_remember: the blocks have the weights {_some(_unlike(here, shapes))}, which new blocks "
                "have not, or lack them; load before fold_() and before adapters are put in them"
            )
    else:
        install(model, saved)
    for number in saved.layers:
        prefix = f"{number}."
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        block_of(inner, number).load_state_dict(part)
    return model


def block_of(inner: Any, number: int) -> nn.Module:
    """The block at a layer, counted from 1; of PEFT's copies that of the active adapter."""
    block = getattr(inner.language_model.layers[number - 1], NAME)
    copies: Any = getattr(block, "modules_to_save", None)
    return block if copies is None else copies[block.active_adapters[0]]  # type: ignore[no-any-return]


def _planned(inner: Any, saved: Patch) -> Patch:
    """The same choices for this model, whose widths may be others."""
    fields = saved.config.to_dict()
    return plan(
        inner,
        saved.layers,
        levels=saved.levels,
        position=saved.position,
        bidirectional="bidirectional" in saved.config.layers,
        neighborhood=saved.neighborhood,
        **{name: fields[name] for name in fields if name not in TAKEN},
    )


def _patch(choices: dict[str, Any]) -> Patch:
    tuples = {name: tuple(choices[name]) for name in ("layers", "levels", "neighborhood")}
    for name, numbers in tuples.items():
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"{name} is {numbers}; it must hold integers")
    return Patch(**(choices | tuples | {"config": VisionRememberConfig.from_dict(choices["config"])}))


def _shapes(patch: Patch) -> dict[str, Size]:
    """Of all weights that new blocks have."""
    state = VisionRemember(patch.config, device="meta").state_dict()
    return {f"{number}.{name}": tensor.shape for number in patch.layers for name, tensor in state.items()}


def _state(inner: Any, patch: Patch) -> dict[str, Tensor]:
    """The weights of the blocks that are there, named as in the file."""
    return {
        f"{number}.{name}": tensor
        for number in patch.layers
        for name, tensor in block_of(inner, number).state_dict().items()
    }


def _unlike(here: dict[str, Size], there: dict[str, Size]) -> set[str]:
    return {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _write(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{FILE}.{secrets.token_hex(8)}.tmp"
    with open(written, "xb") as file:  # with the rights that the umask allows, which tempfile's have not
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(written)
            raise
    os.replace(written, folder / FILE)
