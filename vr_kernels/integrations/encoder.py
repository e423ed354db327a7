"""``capture_features``: levels and saliency of an unmodified Hugging Face vision tower, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vr_kernels.integrations._capture_pass import Pass, of_this_thread
from vr_kernels.integrations._vision_tower import VisionTower, hidden_state
from vr_kernels.nn._sizes import check_tensor
from vr_kernels.ops import attention_received, cls_saliency
from vr_kernels.ops._arguments import Arguments

NAME = "capture_features"

# From a block's queries and keys (B, N, h, d), the CLS row included, to one number a row (B, N).
Saliency = Callable[[Tensor, Tensor], Tensor]

SALIENCIES: dict[str, Saliency] = {
    "cls": lambda query, key: cls_saliency(query[:, 0], key),
    "received": lambda query, key: attention_received(query, key),
}


def capture_features(
    vision_model: nn.Module,
    levels: int | Sequence[int],
    *,
    saliency: str | Saliency | None = None,
    saliency_level: int | None = None,
    joint: bool = False,
) -> FeatureCapture:
    """Keep some ``hidden_states`` of a vision tower, and its saliency, without attention maps (Vision Remember §3).

    A context manager: inside it every forward pass of the tower leaves its levels in ``features``, as grids of patches.
    The tower is not changed, may be frozen or trained (gradients flow through what is captured), and runs whatever
    attention it was loaded with: saliency is made of one block's queries and keys, so that SDPA is never given up for
    eager attention.

    What was captured lives until the next pass of the tower begins, ``release_features()`` is called, or the last
    reference to it is gone; leaving the context only takes the hooks off. The grids are views of the hidden states
    (the CLS row cut off), and so keep those alive. Entering again is allowed; one object serves one thread,
    the one that entered: what others run on the tower meanwhile is not captured.

    Args:
        vision_model: a CLIP or SigLIP vision tower of transformers 5.20 or newer, or a model that holds exactly one,
            such as LLaVA's.
        levels: indices of hidden_states: 0 the embeddings, k the output of block k, negative ones from the end. As in
            transformers the last one is before the tower's final LayerNorm. In the order wanted, each once.
        saliency: "cls", sigmoid of the CLS query's mean logit (v1, Eq. 3; ``vr_kernels.cls_saliency``); "received", the
            attention that a patch receives (``vr_kernels.attention_received``), for towers without CLS row, which sums
            to 1 over N patches: 1/N on average, where "cls" is about 0.5; or a function of that block's query and key
            (B, N, h, d), the CLS row included, that returns (B, N).
        saliency_level: the block that makes hidden_states[saliency_level]; None: the deepest of ``levels``, which is
            block 23 for the levels of the papers.
        joint: write the levels side by side into one buffer, their concatenation: ``joint``, of which ``features``
            are then views. The hidden states themselves are not kept.

    Raises:
        TypeError: vision_model is no module, a level no int, joint no bool, or what saliency returned no tensor.
        ValueError: no tower or several in it; levels that do not exist or repeat; "cls" without a CLS row.
        RuntimeError: entered twice; read before a pass or after a release; a trained tower under reentrant gradient
            checkpointing, which would cut the gradients (use_reentrant=False does not); a tower that torch.compile
            compiled outside of the context, whose hooks it then leaves out.

    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                                          num_attention_heads=2, image_size=32, patch_size=8))
    >>> with torch.no_grad(), capture_features(tower, (2, 4), saliency="cls") as captured:
    ...     _ = tower(torch.randn(1, 3, 32, 32))
    >>> [level.shape for level in captured.features], captured.saliency.shape
    ([torch.Size([1, 4, 4, 32]), torch.Size([1, 4, 4, 32])], torch.Size([1, 4, 4]))
    """
    return FeatureCapture(vision_model, levels, saliency=saliency, saliency_level=saliency_level, joint=joint)


class Captured(NamedTuple):
    states: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    joint: Tensor | None
    saliency: Tensor | None


class FeatureCapture:
    """What ``capture_features`` returns. ``levels`` are the asked indices, none negative."""

    def __init__(
        self,
        vision_model: nn.Module,
        levels: int | Sequence[int],
        *,
        saliency: str | Saliency | None,
        saliency_level: int | None,
        joint: bool,
    ) -> None:
        self._tower = VisionTower(NAME, vision_model)
        asked = (levels,) if isinstance(levels, int) else levels
        if not isinstance(asked, Sequence) or isinstance(asked, (str, bytes)):
            raise TypeError(f"{NAME}: levels is {levels!r}; it must be an int or a sequence of int")
        self.levels = tuple(self._level("levels", level, least=0) for level in asked)
        if not self.levels:
            raise ValueError(f"{NAME}: levels is empty; it must name at least one of hidden_states")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"{NAME}: levels is {tuple(asked)}, which names a level twice; each may be named once")
        Arguments(NAME).flag("joint", joint)
        self._saliency = self._saliency_function(saliency)
        if saliency_level is None:
            saliency_level = max(*self.levels, 1)
        self.saliency_level = self._level("saliency_level", saliency_level, least=1)
        self._joint = joint
        self._hooks: list[RemovableHandle] = []
        self._pass: Pass | None = None
        self._captured: Captured | None = None

    def _level(self, name: str, level: int, *, least: int) -> int:
        last = len(self._tower.blocks)
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"{NAME}: {name} has {level!r}; it must be an int")
        resolved = level + last + 1 if level < 0 else level
        if not least <= resolved <= last:
            raise ValueError(
                f"{NAME}: {name} has {level}; the tower's {last} blocks have hidden_states {least} to {last}, "
                "or negative numbers counted from the end"
            )
        return resolved

    def _saliency_function(self, saliency: str | Saliency | None) -> Saliency | None:
        if saliency is None or callable(saliency):
            return saliency
        if not isinstance(saliency, str) or saliency not in SALIENCIES:
            raise ValueError(f'{NAME}: saliency is {saliency!r}; it must be None, "cls", "received" or a function')
        if saliency == "cls" and not self._tower.has_cls:
            raise ValueError(f'{NAME}: saliency is "cls", and this tower has no CLS row; "received" needs none')
        return SALIENCIES[saliency]

    @property
    def features(self) -> tuple[Tensor, ...]:
        """(B, H, W, D) a level, in the order of ``levels``."""
        return self._read().features

    @property
    def states(self) -> tuple[Tensor, ...]:
        """(B, N, D) a level, as the tower made them: the CLS row first where it has one. Not for ``joint=True``."""
        states = self._read().states
        if not states:
            raise RuntimeError(f"{NAME}: the levels were captured side by side, without CLS rows; ask for joint=False")
        return states

    @property
    def joint(self) -> Tensor:
        """(B, H, W, D of all levels), contiguous; for ``joint=True``."""
        joint = self._read().joint
        if joint is None:
            raise RuntimeError(f"{NAME}: the levels were not captured side by side; ask for joint=True")
        return joint

    @property
    def saliency(self) -> Tensor | None:
        """(B, H, W), or None where none was asked for."""
        return self._read().saliency

    def release_features(self) -> None:
        """Forget what was captured, so that its memory is free as soon as nobody else holds it."""
        self._captured = self._pass = None

    def _read(self) -> Captured:
        if self._captured is None:
            raise RuntimeError(
                f"{NAME}: nothing is captured: run the vision tower inside the context, and read before it is released"
            )
        return self._captured

    def __enter__(self) -> FeatureCapture:
        if self._hooks:
            raise RuntimeError(f"{NAME}: this context is entered already; leave it first, or make another")
        try:
            self._add_hooks()
        except BaseException:
            self._remove_hooks()  # nobody leaves a context that was never entered
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_hooks()
        self._pass = None

    def _add_hooks(self) -> None:
        tower = self._tower
        self._hooks.append(tower.module.register_forward_pre_hook(of_this_thread(self._start)))
        self._hooks.append(tower.patch_embedding.register_forward_hook(of_this_thread(self._on_patches)))
        self._hooks.append(tower.module.register_forward_hook(of_this_thread(self._finish)))
        for place, level in enumerate(self.levels):
            self._hooks.append(self._hook_level(level, place))
        if self._saliency is not None:
            for name, projection in zip(("query", "key"), tower.projections(self.saliency_level), strict=True):
                self._hooks.append(projection.register_forward_hook(of_this_thread(self._on_projection(name))))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook_level(self, level: int, place: int) -> RemovableHandle:
        def before(module: nn.Module, args: Any) -> None:
            self._on_state(args[0], place)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._on_state(hidden_state(output), place)

        blocks = self._tower.blocks
        if level == 0:
            return blocks[0].register_forward_pre_hook(of_this_thread(before))
        return blocks[level - 1].register_forward_hook(of_this_thread(after))

    # The hooks. Outside a pass of the tower they do nothing: recomputation under checkpointing runs some of them again.

    def _start(self, module: nn.Module, args: Any) -> None:
        self.release_features()
        self._pass = Pass(len(self.levels), recording=torch.is_grad_enabled())

    def _on_patches(self, module: nn.Module, args: Any, patches: Tensor) -> None:
        if patches.dim() != 4:
            raise ValueError(
                f"{NAME}: this tower's patches come as {tuple(patches.shape)}; only a grid (B, D, H, W) can be captured"
            )
        if self._pass is not None:
            self._pass.grid = (patches.shape[2], patches.shape[3])

    def _on_state(self, state: Tensor, place: int) -> None:
        if self._pass is None:
            return
        self._refuse_cut_gradients()
        self._pass.places.add(place)
        if self._joint:
            self._pass.write(place, self._patches(state))
        else:
            self._pass.states[place] = state

    def _on_projection(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._pass is not None:
                self._refuse_cut_gradients()
                self._pass.projected[name] = output

        return hook

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        done, self._pass = self._pass, None
        if done is None:
            return
        self._check_complete(done)
        joint = None if done.buffer is None else done.buffer.unflatten(1, done.grid)  # (B, H, W, D of all levels)
        states = tuple(state for state in done.states if state is not None)
        levels = [self._patches(state) for state in states] if done.buffer is None else done.levels()
        features = tuple(level.unflatten(1, done.grid) for level in levels)  # (B, H, W, D)
        self._captured = Captured(states, features, joint, self._saliency_of(done))

    def _check_complete(self, done: Pass) -> None:
        """torch.compile leaves out the hooks of a graph's modules that were not there when the graph was made."""
        missing = done.missing(self.levels, saliency=self._saliency is not None)
        if missing:
            raise RuntimeError(
                f"{NAME}: the tower ran, and {', '.join(missing)} did not come by: a hook did not run. A compiled "
                "tower has the hooks of its first call alone: call the uncompiled one, or set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False before that call"
            )

    def _patches(self, state: Tensor) -> Tensor:
        """(B, N, D) -> (B, H*W, D), a view"""
        return state[:, 1:] if self._tower.has_cls else state

    def _saliency_of(self, done: Pass) -> Tensor | None:
        if self._saliency is None:
            return None
        # Only now: under checkpointing arithmetic on them inside the block would have to be recomputed with it.
        query, key = (self._tower.split_heads(self.saliency_level, done.projected[name]) for name in ("query", "key"))
        rows = self._saliency(query, key)  # (B, N)
        check_tensor(NAME, "what saliency returned", rows)
        if rows.shape != query.shape[:2]:
            raise ValueError(f"{NAME}: saliency returned {tuple(rows.shape)}; it must be {tuple(query.shape[:2])}")
        return (rows[:, 1:] if self._tower.has_cls else rows).unflatten(1, done.grid)  # type: ignore[no-any-return]

    def _refuse_cut_gradients(self) -> None:
        """Inside a reentrant checkpoint gradients are off, although the pass is recorded."""
        assert self._pass is not None
        if not self._pass.recording or torch.is_grad_enabled():
            return
        if any(parameter.requires_grad for parameter in self._tower.module.parameters()):
            raise RuntimeError(
                f"{NAME}: the tower is trained under reentrant gradient checkpointing, which cuts the gradients of "
                "what is captured; enable it with gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
