"""How a block gets between two decoder layers of a model of transformers, ours or anyone's.

The block is a child of its decoder layer, so that it follows the layer to its device and into its shard, and a hook on
that layer calls it with the context that came along with the layer's own arguments. The hook is a plain function that
looks the block up by name: a copied or unpickled model runs its own blocks, and an adapter may put a wrapper in the
place of one. Held by transformers 5.20 to 5.23: decoder layers take hidden states as their first argument, get all
keyword arguments of the model's forward, and return the hidden states alone or first in a tuple.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from vr_kernels.integrations.vision_remember.context import GUIDED, NAME, VisionRememberContext

POSITIONS = ("after", "before")


def insert_blocks(
    decoder_layers: nn.ModuleList, blocks: Mapping[int, nn.Module], *, position: str = "after"
) -> list[Any]:
    """Put a block after (or before) each decoder layer named in ``blocks``, counted from 1.

    Returns:
        The hooks' handles, whose ``remove()`` undoes the calls; ``remove_blocks`` undoes everything.

    Raises:
        ValueError: a layer that does not exist or has a block already; an unknown position.
    """
    check_layers("insert_blocks", tuple(blocks), len(decoder_layers), position)
    for number in blocks:
        if hasattr(decoder_layers[number - 1], NAME):
            raise ValueError(f"insert_blocks: layer {number} has a {NAME} block already; remove it first")
    handles = []
    for number, block in blocks.items():
        layer: nn.Module = decoder_layers[number - 1]
        layer.add_module(NAME, block)
        if position == "after":
            # Before other hooks, which record the hidden states that the next layer sees.
            handles.append(layer.register_forward_hook(_refresh_output, with_kwargs=True, prepend=True))
        else:
            handles.append(layer.register_forward_pre_hook(_refresh_input, with_kwargs=True, prepend=True))
    return handles


def remove_blocks(decoder_layers: nn.ModuleList) -> None:
    """Take all blocks and their hooks out again; layers without one stay as they are."""
    for layer in decoder_layers:
        if hasattr(layer, NAME):
            delattr(layer, NAME)
        for refresh in (_refresh_output, _refresh_input):
            remove_hooks(layer, refresh)


def remove_hooks(module: nn.Module, function: Callable[..., Any]) -> None:
    """Undo each registration of ``function`` as a forward hook or pre-hook that gets keyword arguments. Handles do
    not outlive a copy of the module, but the function does."""
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if hook is function]:
            del hooks[key]
            with_kwargs.pop(key, None)


def refresh_first(layer: nn.Module) -> None:
    """Let a block in front of this layer run before hooks that were put in front of it since."""
    hooks = cast("OrderedDict[int, Any]", layer._forward_pre_hooks)
    for key in [key for key, hook in hooks.items() if hook is _refresh_input]:
        hooks.move_to_end(key, last=False)


def check_layers(operation: str, layers: Sequence[int], depth: int, position: str, *, prefix: str = "") -> None:
    """Refuse layers that a decoder of this depth does not have; ``prefix`` is that of the arguments' names."""
    if position not in POSITIONS:
        raise ValueError(
            f"{operation}: {prefix}position is {position!r}; it must be {' or '.join(map(repr, POSITIONS))}"
        )
    if len(set(layers)) != len(layers):
        raise ValueError(
            f"{operation}: {prefix}layers is {tuple(layers)}, which names a layer twice; each may be named once"
        )
    for number in layers:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= depth:
            raise ValueError(
                f"{operation}: {prefix}layers has {number!r}; it must be 1 to {depth}, counted from the first"
            )


def _refresh_output(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    context: VisionRememberContext | None = kwargs.get(NAME)
    if context is None:
        return None
    _mark_guided(kwargs, context)
    if isinstance(output, tuple):
        return (_refreshed(layer, output[0], context), *output[1:])
    return _refreshed(layer, output, context)


def _refresh_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    context: VisionRememberContext | None = kwargs.get(NAME)
    if context is None:
        return None
    _mark_guided(kwargs, context)
    if args:
        return (_refreshed(layer, args[0], context), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": _refreshed(layer, kwargs["hidden_states"], context)}


def _mark_guided(kwargs: dict[str, Any], context: VisionRememberContext) -> None:
    cache = kwargs.get("past_key_values")
    if cache is not None and context.text_mask is not None:
        setattr(cache, GUIDED, True)


def _refreshed(layer: nn.Module, hidden_states: Tensor, context: VisionRememberContext) -> Tensor:
    context = context.to(hidden_states.device)
    block: nn.Module = getattr(layer, NAME)
    return block(hidden_states, context.vision_map, context.features, **context.options)  # type: ignore[no-any-return]
