"""One forward pass of a decoder that drops vision tokens on its way up: the prompt's, and those of what is generated.

The layers above a stage are handed shorter sequences. What is left of each sequence is moved together, to the right
end, so that the dropped tokens cost nothing: no attention, no MLP, no room in the cache. Where every sequence of the
batch drops as many, no mask is needed, and attention runs as it would on a shorter prompt; else the slots that are
missing on the left are masked, as left padding is.

A DynamicCache holds as many tokens for each layer as that layer was given, so it stays right by itself. What later
tokens must know of the prompt, which slots are padding and how far positions have moved, is kept on the cache: it lives
as long, is copied with it, and belongs to one generation. It is the same for all beams of a sample, so that reordering
them leaves it right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.integrations._decoder import Decoder
from vr_kernels.integrations.pruning_rules import Rule
from vr_kernels.ops.token_selection import take_tokens

MEMORY = "_vr_kernels_pruning"  # the attribute of a cache


@dataclass(frozen=True)
class Layout:
    """What stands in the n slots of each sequence."""

    rows: Tensor  # (B, n) int64, the row of the decoder's input; -1: none, a recycled token's or padding
    vision: Tensor  # (B, n) bool
    raters: Tensor | None  # (B, n) bool
    valid: Tensor | None  # (B, n) bool; None: no padding
    answer: Tensor | None  # (B, n) bool, behind the prompt; None: the prompt is all there is
    positions: Tensor  # (B, n) int64
    lengths: Tensor  # (B,) int64, the valid slots
    originals: tuple[int, ...]  # vision tokens of each prompt

    @property
    def prompt(self) -> Tensor | None:
        return in_prompt(self.valid, self.answer)


class Held(NamedTuple):
    """What the layers from a stage on hold of a prompt."""

    valid: Tensor | None  # (B, n) bool
    removed: Tensor | None  # (B,) int64, by how much later positions are less; None: they are not


@dataclass
class Memory:
    prompt: int  # tokens that the layers below the first stage hold
    batch: int
    stages: dict[int, Held]  # by the first layer of each


class LayerAttention:
    """Queries and keys of one layer, for the rows that enter it."""

    def __init__(
        self, decoder: Decoder, layer: int, hidden: Tensor, embedding: tuple[Tensor, Tensor], layout: Layout
    ) -> None:
        self._decoder, self._layer, self._layout = decoder, layer, layout
        self._hidden = hidden.detach()
        batch = hidden.shape[0]
        self._embedding = embedding[0].expand(batch, -1, -1), embedding[1].expand(batch, -1, -1)  # (B, n, d)

    def last_query(self) -> Tensor:
        last = last_slots(self._layout.prompt, self._hidden)[:, None]  # (B, 1)
        cos, sin = self._embedding
        rows = take_tokens(cos, last), take_tokens(sin, last)
        return self._decoder.query(self._layer, take_tokens(self._hidden, last), rows)

    def queries(self, rows: Tensor) -> list[Tensor]:
        samples = zip(self._hidden, *self._embedding, rows, strict=True)
        return [
            self._decoder.query(self._layer, hidden[None, chosen], (cos[None, chosen], sin[None, chosen]))[0]
            for hidden, cos, sin, chosen in samples
        ]

    def key(self) -> Tensor:
        return self._decoder.key(self._layer, self._hidden, self._embedding)


class Prefill:
    """A prompt with vision tokens."""

    def __init__(
        self,
        decoder: Decoder,
        rule: Rule,
        vision: Tensor,
        attention_mask: Tensor | None,
        supervised: Tensor | None = None,
    ) -> None:
        self._decoder, self._rule = decoder, rule
        self._vision = vision
        self._valid = None if attention_mask is None else attention_mask.bool()
        self._answer = None if supervised is None else answers(supervised, vision)
        self._layout: Layout | None = None
        self._length = vision.shape[1]
        self._view: dict[str, Any] = {}
        self._chosen: tuple[Tensor, Tensor | None] | None = None

    def enter(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """What layer ``number`` gets in place of its hidden states; ``kwargs`` are changed to fit."""
        if self._layout is None:
            self._layout = self._begin(hidden, kwargs["position_ids"])
        kwargs.update(self._view)
        for place, stage in enumerate(self._rule.stages):
            if number == stage.scored:
                attention = LayerAttention(self._decoder, number, hidden, kwargs["position_embeddings"], self._layout)
                with torch.no_grad():
                    self._chosen = self._rule.keep(place, self._layout, attention)
            if number == stage.dropped:
                hidden = self._drop(number, hidden, kwargs.get("past_key_values"))
                kwargs.update(self._view)
        return hidden

    def leave(self, hidden: Tensor) -> Tensor:
        """The decoder's output in the places of its input: (B, n, D) -> (B, N, D), the dropped rows zero."""
        if not self._view or self._layout is None:
            return hidden
        rows = self._layout.rows
        rows = torch.where(rows < 0, self._length, rows)  # to a row that is cut off
        full = hidden.new_zeros(hidden.shape[0], self._length + 1, hidden.shape[2])
        return full.scatter(1, rows[..., None].expand_as(hidden), hidden)[:, :-1]

    def _begin(self, embeddings: Tensor, position_ids: Tensor) -> Layout:
        batch, length = self._vision.shape
        valid, vision = self._valid, self._vision
        prompt = in_prompt(valid, self._answer)
        rows = torch.arange(length, device=vision.device)
        vision = vision & (rows != last_slots(prompt, embeddings)[:, None])  # what is generated goes on from that row
        if valid is None:
            self._tokens = torch.full((batch,), length, device=vision.device)
        else:
            vision, self._tokens = vision & valid, valid.sum(1)
        return Layout(
            rows=rows.expand(batch, length),
            vision=vision,
            raters=self._rule.raters(embeddings, vision, prompt),
            valid=valid,
            answer=self._answer,
            positions=position_ids.expand(batch, length),
            lengths=self._tokens,
            originals=tuple(vision.sum(1).tolist()),
        )

    def _drop(self, number: int, hidden: Tensor, cache: Any) -> Tensor:
        assert self._layout is not None
        assert self._chosen is not None
        (keep, scores), self._chosen = self._chosen, None
        if bool(keep.all()):
            return hidden
        recycled = self._rule.recycle(hidden, ~keep, scores)
        self._layout, hidden = repack(self._layout, hidden, keep, recycled, compacts=self._rule.compacts)
        layout, decoder = self._layout, self._decoder
        self._view = {
            "attention_mask": decoder.causal_mask(number, hidden, layout.valid, cache),
            "position_ids": layout.positions,
            "position_embeddings": decoder.position_embeddings(hidden, layout.positions),
        }
        if cache is not None:
            if not hasattr(cache, MEMORY):
                setattr(cache, MEMORY, Memory(self._length, len(hidden), {}))
            removed = self._tokens - layout.lengths if self._rule.compacts else None
            getattr(cache, MEMORY).stages[number] = Held(layout.valid, removed)
        return hidden


class Continuation:
    """Tokens behind a prompt of which layers hold fewer."""

    def __init__(self, decoder: Decoder, memory: Memory, attention_mask: Tensor | None) -> None:
        self._decoder, self._memory = decoder, memory
        self._later = None if attention_mask is None else attention_mask[:, memory.prompt :].bool()
        self._view: dict[str, Any] = {}

    def enter(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        held = self._memory.stages.get(number)
        if held is not None:
            self._view = self._fit(number, held, hidden, kwargs)
        kwargs.update(self._view)
        return hidden

    def leave(self, hidden: Tensor) -> Tensor:
        return hidden

    def _fit(self, number: int, held: Held, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        cache = kwargs["past_key_values"]
        total = cache.get_seq_length(number) + hidden.shape[1]
        view = {"attention_mask": self._decoder.causal_mask(number, hidden, self._valid(held, hidden, total), cache)}
        if held.removed is not None:
            positions = kwargs["position_ids"] - held.removed[:, None]  # of the layers below: counted anew each pass
            view["position_ids"] = positions
            view["position_embeddings"] = self._decoder.position_embeddings(hidden, positions)
        return view

    def _valid(self, held: Held, hidden: Tensor, total: int) -> Tensor | None:
        """(B, total) bool, the prompt's slots and the later tokens; None: all."""
        if held.valid is None and self._later is None:
            return None
        later = self._later
        if held.valid is not None:
            missing = total - held.valid.shape[1]
            later = held.valid.new_ones(hidden.shape[0], missing) if later is None else later
            return torch.cat([held.valid, later], 1)
        assert later is not None
        return F.pad(later, (total - later.shape[1], 0), value=True)


def answers(supervised: Tensor, vision: Tensor) -> Tensor:
    """(B, n) bool, True from the first supervised token on that stands behind all vision tokens."""
    behind = vision.flip(1).cumsum(1).flip(1) == 0
    return (supervised & behind).cumsum(1) > 0


def in_prompt(valid: Tensor | None, answer: Tensor | None) -> Tensor | None:
    """(B, n) bool, True at what is neither padding nor of an answer; None: all."""
    if valid is None or answer is None:
        return valid if answer is None else ~answer
    return valid & ~answer


def last_slots(valid: Tensor | None, hidden: Tensor) -> Tensor:
    """(B,) int64, the last valid slot of each sequence."""
    batch, length = hidden.shape[:2]
    if valid is None:
        return torch.full((batch,), length - 1, device=hidden.device)
    return length - 1 - valid.flip(1).to(torch.uint8).argmax(1)


def repack(
    layout: Layout, hidden: Tensor, keep: Tensor, recycled: list[Tensor] | None, *, compacts: bool
) -> tuple[Layout, Tensor]:
    """Move what stays of each sequence to the right end: hidden (B, n, D), keep (B, n) -> (B, n', D).

    Padding is left out as well, so n' is the length of the longest sequence. Recycled tokens (m, D) of each sequence
    stand behind its last vision token. Positions are kept, or counted on from the first one's.
    """
    batch, slots = keep.shape
    present = keep if layout.valid is None else keep & layout.valid
    orders = []
    for b in range(batch):
        order = present[b].nonzero()[:, 0]
        if recycled is not None and len(recycled[b]) > 0:
            behind = int((order <= layout.vision[b].nonzero()[-1, 0]).sum())
            added = slots + torch.arange(len(recycled[b]), device=order.device)
            order = torch.cat([order[:behind], added, order[behind:]])
        orders.append(order)
    longest = max(len(order) for order in orders)
    missing = [longest - len(order) for order in orders]
    index = torch.stack([F.pad(order, (pad, 0)) for order, pad in zip(orders, missing, strict=True)])  # (B, n')
    gone = torch.tensor(missing, device=hidden.device)
    slot = torch.arange(longest, device=hidden.device)
    valid = slot >= gone[:, None]  # (B, n')

    extra = 0
    if recycled is not None:
        table = torch.nn.utils.rnn.pad_sequence(recycled, batch_first=True)  # (B, most, D)
        hidden, extra = torch.cat([hidden, table], 1), table.shape[1]

    def moved(values: Tensor, added: int | bool) -> Tensor:
        return take_tokens(F.pad(values, (0, extra), value=added), index)

    if compacts:
        first = layout.positions.gather(1, first_slots(layout.valid, layout.positions)[:, None])  # (B, 1)
        positions = first + (slot - gone[:, None]).clamp(min=0)
    else:
        positions = moved(layout.positions, 0)
    packed = Layout(
        rows=moved(layout.rows, -1).masked_fill(~valid, -1),
        vision=moved(layout.vision, True) & valid,
        raters=None if layout.raters is None else moved(layout.raters, False) & valid,
        valid=valid if any(missing) else None,
        answer=None if layout.answer is None else moved(layout.answer, False),
        positions=positions,
        lengths=longest - gone,
        originals=layout.originals,
    )
    return packed, take_tokens(hidden, index)


def first_slots(valid: Tensor | None, like: Tensor) -> Tensor:
    """(B,) int64, the first valid slot of each sequence."""
    if valid is None:
        return torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
    return valid.to(torch.uint8).argmax(1)
