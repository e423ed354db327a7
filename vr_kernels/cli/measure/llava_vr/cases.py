"""The papers' models by name, and what one prompt with its image must cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vr_kernels.cli.measure.bench import Case

LAYERS = [1, 4]  # of the decoder, that have a block behind them
PAPER_DEPTH = 24  # blocks of the papers' encoders, in which their levels are counted


@dataclass(frozen=True, kw_only=True)
class ModelCase(Case):
    """A prompt with one image, of one tile or with AnyRes of 1 + 4, before LLaVA-VR with random weights.

    ``trained``: the blocks change what they read. Otherwise they are as new, and the logits are those without them.
    """

    version: str = "v2"  # of the paper: encoder, window and blocks
    tiles: int = 1
    text: int = 64  # tokens of the prompt beside the image
    answer: int = 16  # tokens
    window: int = 3
    image: int = 384
    patch: int = 16
    vision_width: int = 1024
    vision_inner: int = 4096
    vision_blocks: int = 24
    vision_heads: int = 16
    width: int = 896
    inner: int = 4864
    blocks: int = 24
    query_heads: int = 14
    key_heads: int = 2
    vocabulary: int = 151936
    trained: bool = False

    def __post_init__(self) -> None:
        if self.backward:
            raise ValueError(f"{self.name}: the time to the first token is measured, forward alone")

    @property
    def sizes(self) -> str:
        return (
            f"{self.batch} prompts of {self.text} words and an image of {self.tiles} tiles, "
            f"{self.vision_blocks} blocks of {self.vision_width} before {self.blocks} of {self.width}"
        )

    @property
    def side(self) -> int:
        """Features along an edge of a tile."""
        return self.image // self.patch

    @property
    def heads(self) -> int:
        """Of the cross-attention, of width 128 as the papers'."""
        return max(1, 3 * self.vision_width // 128)

    @property
    def key_width(self) -> int:
        """Of the decoder's keys, and of its values."""
        return self.width * self.key_heads // self.query_heads

    @property
    def deepest(self) -> int:
        return max(self.levels([23]))

    @property
    def pinpoints(self) -> list[list[int]]:
        return [] if self.tiles == 1 else [[2 * self.image, 2 * self.image]]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, which fills its tiles."""
        edge = self.image if self.tiles == 1 else 2 * self.image
        return edge, edge

    def small(self) -> ModelCase:
        return replace(self.quick(), batch=2, trained=True)

    def quick(self) -> ModelCase:
        return replace(
            self, text=8, answer=4, image=12 * self.patch, vision_width=64, vision_inner=128, vision_blocks=6,
            vision_heads=2, width=64, inner=128, blocks=5, query_heads=4, key_heads=2, vocabulary=512,
        )  # fmt: skip

    def levels(self, levels: list[int]) -> list[int]:
        """The papers' levels, at the same height in an encoder of another depth."""
        return [max(1, round(level * self.vision_blocks / PAPER_DEPTH)) for level in levels]


_VERSIONS: dict[str, Any] = {"v1": {"version": "v1", "image": 336, "patch": 14, "window": 2}, "v2": {}}
_TILES = {"": 1, "-anyres": 5}
# Qwen2 of 0.5B parameters, and the larger ones of the papers.
_DECODERS: dict[str, Any] = {
    "": {},
    "-1.5b": {"width": 1536, "inner": 8960, "blocks": 28, "query_heads": 12},
    "-7b": {"width": 3584, "inner": 18944, "blocks": 28, "query_heads": 28, "key_heads": 4},
}
SHAPES = {
    (name := f"{version}{kind}{size}"): ModelCase(name=name, tiles=tiles, **encoder, **decoder)
    for size, decoder in _DECODERS.items()
    for kind, tiles in _TILES.items()
    for version, encoder in _VERSIONS.items()
} | {"tiny": replace(ModelCase(name="tiny").quick(), name="tiny")}


def operations(case: ModelCase) -> dict[str, float]:
    """Of each part, for one prompt: the encoder up to the deepest level that is read, blocks in the absorbed form."""
    rows, cells = case.side**2 + (case.version == "v1"), (case.side // case.window) ** 2
    vision_block = rows * (8 * case.vision_width**2 + 4 * case.vision_width * case.vision_inner)
    vision_block += 4 * rows**2 * case.vision_width
    patches = 2 * case.side**2 * 3 * case.patch**2 * case.vision_width

    tokens = case.text + case.tiles * cells
    decoder_block = tokens * (4 * case.width**2 + 4 * case.width * case.key_width + 6 * case.width * case.inner)
    decoder_block += 2 * tokens**2 * case.width  # causal: half of the scores
    head = 2 * case.width * case.vocabulary  # of the last token

    joined = 3 * case.vision_width
    block = 4 * case.width * joined + 8 * joined**2 + 4 * case.heads * case.window**2 * joined  # of one token
    if case.version == "v2":  # and the bidirectional layer
        block += 8 * case.width**2 + 4 * case.tiles * cells * case.width
    return {
        "vision": case.tiles * (patches + case.deepest * vision_block),
        "projector": case.tiles * cells * (2 * case.vision_width * case.width + 2 * case.width**2),
        "Vision Remember": len(LAYERS) * case.tiles * cells * block,
        "decoder": case.blocks * decoder_block + head,
    }


def parameters_read(case: ModelCase) -> float:
    """How many there are of all matrices that a prefill multiplies by."""
    encoder = case.deepest * (4 * case.vision_width**2 + 2 * case.vision_width * case.vision_inner)
    encoder += 3 * case.patch**2 * case.vision_width
    projector = case.vision_width * case.width + case.width**2
    joined = 3 * case.vision_width
    block = 2 * case.width * joined + 4 * joined**2 + (case.version == "v2") * 4 * case.width**2
    decoder_block = 2 * case.width**2 + 2 * case.width * case.key_width + 3 * case.width * case.inner
    head = case.width * case.vocabulary
    return float(encoder + projector + len(LAYERS) * block + case.blocks * decoder_block + head)
