"""What a decoder does with the pruning rules: which layers are scored, which see fewer tokens, at what positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import Tensor

from vr_kernels.compression.pruning import (
    fastv,
    keep_highest,
    pyramiddrop,
    random_rows,
    rate_by_text,
    recycle,
    text_raters,
)

__all__ = ["STATE", "FastV", "PyramidDrop", "RandomRows", "Rule", "SparseVLM", "Stage", "check_blocks"]

STATE = "_vr_kernels_pruning"  # the attribute of a pruned decoder, or of the part that encodes images


class Stage(NamedTuple):
    """Layers are counted from 0. The two may be one layer: then it is scored before it runs, of what enters it."""

    scored: int  # whose queries and keys say what is dropped
    dropped: int  # the first layer that sees fewer tokens


class Rows(Protocol):
    """The tokens that a layer would see, and where they come from; n slots a sequence."""

    @property
    def vision(self) -> Tensor: ...  # (B, n) bool

    @property
    def prompt(self) -> Tensor | None: ...  # (B, n) bool, False at padding and in an answer; None: all is prompt

    @property
    def raters(self) -> Tensor | None: ...  # (B, n) bool, what Rule.raters said, or None

    @property
    def originals(self) -> Sequence[int]: ...  # how many vision tokens each prompt had


class Attention(Protocol):
    """The scored layer's queries and keys, made when they are asked for."""

    def last_query(self) -> Tensor: ...  # (B, 1, h, d), of the last row of each prompt

    def queries(self, rows: Tensor) -> list[Tensor]: ...  # of each sequence (R, h, d), of the rows (B, n) bool

    def key(self) -> Tensor: ...  # (B, n, h_kv, d)


class Rule(ABC):
    """A way to choose. Arguments were checked when it was made."""

    name: str
    compacts = False  # whether the tokens that are left get the positions 0, 1, 2, ... or keep their own

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]: ...

    def raters(self, embeddings: Tensor, vision: Tensor, prompt: Tensor | None) -> Tensor | None:
        """Which rows of the decoder's input (B, N, D) rate the others, where a rule needs it: (B, N) bool."""
        return None

    @abstractmethod
    def keep(self, stage: int, rows: Rows, attention: Attention) -> tuple[Tensor, Tensor | None]:
        """(B, n) bool, the rows that stay; the scores (B, n) if ``recycle`` needs them."""

    def recycle(self, hidden: Tensor, dropped: Tensor, scores: Tensor | None) -> list[Tensor] | None:
        """Of each sequence the tokens (m, D) that stand for its dropped ones, behind its last vision token."""
        return None


@dataclass(frozen=True)
class FastV(Rule):
    """The first ``layer`` layers see all tokens; the last one's attention of them says which int(n * ratio) go on."""

    layer: int = 2
    keep_ratio: float = 0.5
    name = "fastv"

    def __post_init__(self) -> None:
        check_layers(self.name, "layer", (self.layer,), least=1)
        check_ratios(self.name, "keep_ratio", (self.keep_ratio,))

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer - 1, self.layer),)

    def keep(self, stage: int, rows: Rows, attention: Attention) -> tuple[Tensor, None]:
        query, key = attention.last_query(), attention.key()
        return fastv(query, key, rows.vision, self.keep_ratio, valid=rows.prompt), None


@dataclass(frozen=True)
class PyramidDrop(Rule):
    """After ``layers[i]`` layers int(n * keep_ratios[i]) of the n vision tokens that a prompt had are left."""

    layers: tuple[int, ...] = (8, 16, 24)
    keep_ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    name = "pyramiddrop"
    compacts = True

    def __post_init__(self) -> None:
        check_sequence(self.name, "layers", self.layers)
        check_sequence(self.name, "keep_ratios", self.keep_ratios)
        check_layers(self.name, "layers", self.layers, least=1)
        check_ratios(self.name, "keep_ratios", self.keep_ratios)
        check_lengths(self.name, "keep_ratios", self.keep_ratios, self.layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, layer) for layer in self.layers)

    def keep(self, stage: int, rows: Rows, attention: Attention) -> tuple[Tensor, None]:
        query, key = attention.last_query(), attention.key()
        return pyramiddrop(query, key, rows.vision, self.keep_ratios[stage], rows.originals, valid=rows.prompt), None


@dataclass(frozen=True)
class SparseVLM(Rule):
    """Behind layer ``layers[i]``, counted from 0, ``keep_counts[i]`` vision tokens are left, and some recycled."""

    layers: tuple[int, ...] = (2, 6, 15)
    keep_counts: tuple[int, ...] = (300, 200, 110)
    recycled_share: float = 0.3
    name = "sparsevlm"
    compacts = True

    def __post_init__(self) -> None:
        check_sequence(self.name, "layers", self.layers)
        check_sequence(self.name, "keep_counts", self.keep_counts)
        check_layers(self.name, "layers", self.layers, least=0)
        check_ratios(self.name, "recycled_share", (self.recycled_share,))
        check_integers(self.name, "keep_counts", self.keep_counts, least=0)
        check_lengths(self.name, "keep_counts", self.keep_counts, self.layers)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, layer + 1) for layer in self.layers)

    def raters(self, embeddings: Tensor, vision: Tensor, prompt: Tensor | None) -> Tensor:
        return text_raters(embeddings, vision, prompt)

    def keep(self, stage: int, rows: Rows, attention: Attention) -> tuple[Tensor, Tensor]:
        assert rows.raters is not None
        scores = rate_by_text(attention.queries(rows.raters), attention.key(), rows.raters, rows.prompt)
        return keep_highest(scores, rows.vision, [self.keep_counts[stage]] * len(scores)), scores

    def recycle(self, hidden: Tensor, dropped: Tensor, scores: Tensor | None) -> list[Tensor]:
        assert scores is not None
        samples = zip(hidden, dropped, scores, strict=True)
        return [recycle(states[rows], score[rows], share=self.recycled_share) for states, rows, score in samples]


@dataclass(frozen=True)
class RandomRows(Rule):
    """FastV's place and number, and chance in place of attention."""

    layer: int = 2
    keep_ratio: float = 0.5
    seed: int = 0
    name = "random"

    def __post_init__(self) -> None:
        check_layers(self.name, "layer", (self.layer,), least=1)
        check_ratios(self.name, "keep_ratio", (self.keep_ratio,))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"apply_pruning: {self.name}'s seed is {self.seed!r}; it must be an int")

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.layer),)

    def keep(self, stage: int, rows: Rows, attention: Attention) -> tuple[Tensor, None]:
        return random_rows(rows.vision, self.keep_ratio, seed=self.seed), None


def check_blocks(operation: str, rule: Rule, numbers: Sequence[int]) -> None:
    """Refuse ``VisionRemember`` blocks at decoder layers, counted from 1, that would miss vision tokens."""
    first = min(stage.dropped for stage in rule.stages)
    if any(number > first for number in numbers):
        raise ValueError(
            f"{operation}: {rule.name} leaves {first} decoder layers with all vision tokens, and blocks at layers "
            f"{', '.join(map(str, sorted(numbers)))}, counted from 1, read all; drop tokens behind the last block, or "
            "do without one of the two"
        )


def check_sequence(rule: str, name: str, values: object) -> None:
    if not isinstance(values, tuple):
        raise TypeError(f"apply_pruning: {rule}'s {name} is {values!r}; it must be a tuple or list, one entry a stage")


def check_integers(rule: str, name: str, values: Sequence[int], *, least: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"apply_pruning: {rule}'s {name} has {value!r}; it must be an int")
        if value < least:
            raise ValueError(f"apply_pruning: {rule}'s {name} has {value}; it must be at least {least}")


def check_layers(rule: str, name: str, layers: Sequence[int], *, least: int) -> None:
    check_integers(rule, name, layers, least=least)
    if len(layers) == 0 or any(one >= other for one, other in pairwise(layers)):
        raise ValueError(
            f"apply_pruning: {rule}'s {name} is {tuple(layers)}; it must rise, and name at least one layer"
        )


def check_ratios(rule: str, name: str, ratios: Sequence[float]) -> None:
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise TypeError(f"apply_pruning: {rule}'s {name} has {ratio!r}; it must be a number")
        if not 0 <= ratio <= 1:
            raise ValueError(f"apply_pruning: {rule}'s {name} has {ratio}; it must be from 0 to 1")


def check_lengths(rule: str, name: str, values: Sequence[object], layers: Sequence[int]) -> None:
    if len(values) != len(layers):
        raise ValueError(
            f"apply_pruning: {rule}'s {name} has {len(values)} entries and layers {len(layers)}; one belongs to each"
        )
