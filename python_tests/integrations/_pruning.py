"""The pruning rules said plainly: one sample at a time, without a cache, by the eager attention maps of every layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from python_tests.compression._density_peaks import clusters
from python_tests.integrations._towers import MODELS, SIZES

IMAGE, WORDS = 2, 32
PINPOINTS = [[24, 48], [48, 24]]
LAYERS = 6


def text_config(decoder: str, **settings: Any) -> Any:
    import transformers as hf

    kind = {"qwen2": hf.Qwen2Config, "llama": hf.LlamaConfig}[decoder]
    return kind(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None, **settings,
    )  # fmt: skip


def spread(model: Any, seed: int) -> Any:
    """Weights that make attention peaked and logits depend on every token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 2 if "q_proj" in name or "k_proj" in name or "embed" in name else 1
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model.eval()


def language_model(decoder: str, seed: int = 0, **settings: Any) -> Any:
    import transformers as hf

    kind = {"qwen2": hf.Qwen2ForCausalLM, "llama": hf.LlamaForCausalLM}[decoder]
    return spread(kind(text_config(decoder, **settings)), seed)


def llava(kind: str, decoder: str, family: str, seed: int = 0) -> Any:
    import transformers as hf

    shared: dict[str, Any] = {
        "vision_config": MODELS[family][0](**SIZES),
        "text_config": text_config(decoder),
        "image_token_id": IMAGE,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if family == "clip" else "full",
    }
    if kind == "llava":
        return spread(hf.LlavaForConditionalGeneration(hf.LlavaConfig(**shared)), seed)
    if kind == "llava_next":
        config = hf.LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **shared)
        return spread(hf.LlavaNextForConditionalGeneration(config), seed)
    shared |= {"vision_feature_select_strategy": "full", "video_token_id": 3, "vision_aspect_ratio": "anyres_max_9"}
    onevision = hf.LlavaOnevisionConfig(image_grid_pinpoints=PINPOINTS, **shared)
    return spread(hf.LlavaOnevisionForConditionalGeneration(onevision), seed)


@dataclass
class Sample:
    """A sample on its way up: the tokens that are left, in order, and the attention map of the layer below."""

    hidden: Tensor  # (n, D)
    kinds: list[str]  # of each token: text, vision, or later, what stands behind the prompt
    positions: list[int]
    originals: int  # vision tokens of the prompt
    embeddings: Tensor  # (N, D), what entered the first layer
    beginning: list[str]  # kinds of those
    map: Tensor  # (h, n, n), of the scored layer

    @property
    def last(self) -> int:
        """The prompt's last token."""
        return max(i for i, kind in enumerate(self.kinds) if kind != "later")

    def best(self, scores: Tensor, count: int) -> list[int]:
        """The vision tokens of the highest scores, the last token of the prompt not being one."""
        vision = [i for i in self.vision if i != self.last]
        return sorted(vision, key=lambda i: (-scores[i].item(), i))[:count]

    @property
    def vision(self) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if kind == "vision"]

    def without(self, kept: list[int], *, compact: bool, recycled: Tensor | None = None) -> None:
        """Go on with these vision tokens, recycled ones (m, D) behind the last of all that there were."""
        gone = set(self.vision) - set(kept) - {self.last}
        if not gone:
            return
        end = max(self.vision)
        order = [i for i in range(len(self.kinds)) if i not in gone]
        before, after = [i for i in order if i <= end], [i for i in order if i > end]
        new = self.hidden[:0] if recycled is None else recycled
        self.hidden = torch.cat([self.hidden[before], new, self.hidden[after]])
        self.kinds = [self.kinds[i] for i in before] + ["vision"] * len(new) + [self.kinds[i] for i in after]
        kept_positions = [self.positions[i] for i in order]
        self.positions = list(range(len(self.kinds))) if compact else kept_positions


# By method: from options, (layer whose map is read, layer in front of which tokens go, what goes) of each stage.
Stages = list[tuple[int, int, Callable[[Sample], None]]]


def fastv(layer: int = 2, keep_ratio: float = 0.5) -> Stages:
    def drop(sample: Sample) -> None:
        scores = sample.map.mean(0)[sample.last]
        sample.without(sample.best(scores, int(sample.originals * keep_ratio)), compact=False)

    return [(layer - 1, layer, drop)]


def pyramiddrop(layers: tuple[int, ...], keep_ratios: tuple[float, ...]) -> Stages:
    def drop(ratio: float) -> Callable[[Sample], None]:
        def at(sample: Sample) -> None:
            scores = sample.map.mean(0)[sample.last]
            sample.without(sample.best(scores, int(sample.originals * ratio)), compact=True)

        return at

    return [(layer, layer, drop(ratio)) for layer, ratio in zip(layers, keep_ratios, strict=True)]


def random(layer: int = 2, keep_ratio: float = 0.5, seed: int = 0) -> Stages:
    def drop(sample: Sample) -> None:
        vision = [i for i in sample.vision if i != sample.last]
        order = torch.randperm(len(vision), generator=torch.Generator().manual_seed(seed)).tolist()
        best = sorted(range(len(vision)), key=lambda i: -order[i])[: int(len(vision) * keep_ratio)]
        sample.without([vision[i] for i in best], compact=False)

    return [(layer, layer, drop)]


def sparsevlm(layers: tuple[int, ...], keep_counts: tuple[int, ...], recycled_share: float = 0.3) -> Stages:
    def drop(count: int) -> Callable[[Sample], None]:
        def at(sample: Sample) -> None:
            text = list(range(max(sample.vision) + 1, sample.last + 1))
            chosen = relevant(sample) or [True] * len(text)
            rows = [i for i, good in zip(text, chosen, strict=True) if good] or [sample.last]
            scores = sample.map.mean(0)[rows].mean(0)
            kept = sample.best(scores, count)
            gone = [i for i in sample.vision if i not in kept and i != sample.last]
            recycled = None
            if gone and recycled_share:
                number = min(int(len(gone) * recycled_share) + 1, len(gone))
                again = sorted(sorted(gone, key=lambda i: (-scores[i].item(), i))[:number])
                recycled = clusters(sample.hidden[again], number // 10 + 1)
            sample.without(kept, compact=True, recycled=recycled)

        return at

    return [(layer, layer + 1, drop(count)) for layer, count in zip(layers, keep_counts, strict=True)]


def relevant(sample: Sample) -> list[bool]:
    """Of each text token behind the image whether its mean relevance is above the mean."""
    vision = [i for i, kind in enumerate(sample.beginning) if kind == "vision"]
    text = [i for i, kind in enumerate(sample.beginning) if kind == "text" and i > max(vision)]
    if not text:
        return []
    rows = [torch.stack([sample.embeddings[v] @ sample.embeddings[t] for t in text]).softmax(0) for v in vision]
    mean = torch.stack(rows).mean(0)
    above = [bool(x > mean.mean()) for x in mean]
    return above if any(above) else [True] * len(text)


METHODS: dict[str, Callable[..., Stages]] = {
    "fastv": fastv, "pyramiddrop": pyramiddrop, "random": random, "sparsevlm": sparsevlm,
}  # fmt: skip


class Oracle:
    """A float64 copy of a model with eager attention."""

    def __init__(self, host: Any) -> None:
        self.model = copy.deepcopy(host).double()
        self.model.set_attn_implementation("eager")
        inner = self.model.model
        self.decoder = getattr(inner, "language_model", inner)

    def embeddings(self, **inputs: Any) -> Tensor:
        """What the decoder gets for a batch: (B, N, D)."""
        seen: list[Tensor] = []
        hook = self.decoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        inputs = {name: x.double() if torch.is_floating_point(x) else x for name, x in inputs.items()}
        with torch.no_grad():
            self.model(**inputs)
        hook.remove()
        return seen[0]

    def logits(self, prompt: Tensor, vision: list[bool], later: list[int], stages: Stages) -> Tensor:
        """One sample: prompt (N, D) embeddings, later tokens by id -> (V,) of the last token's successor."""
        with torch.no_grad():
            table = self.model.get_input_embeddings().weight
            kinds = ["vision" if seen else "text" for seen in vision] + ["later"] * len(later)
            hidden = torch.cat([prompt, table[later]])
            sample = Sample(hidden, kinds, list(range(len(kinds))), sum(vision[:-1]), hidden, kinds, hidden[:0])
            for number, layer in enumerate(self.decoder.layers):
                for scored, dropped, drop in stages:
                    if dropped == number and sample.vision:
                        if scored == number:
                            self._run(layer, sample)
                        drop(sample)
                sample.hidden = self._run(layer, sample)
            return self.model.lm_head(self.decoder.norm(sample.hidden[-1]))

    def _run(self, layer: Any, sample: Sample) -> Tensor:
        """The layer's output (n, D), its map left with the sample."""
        maps: list[Tensor] = []
        hook = layer.self_attn.register_forward_hook(lambda module, args, output: maps.append(output[1]))
        hidden, positions = sample.hidden[None], torch.tensor([sample.positions])
        n = hidden.shape[1]
        mask = torch.full((n, n), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
        embedding = self.decoder.rotary_emb(hidden, positions)
        output = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=embedding)
        hook.remove()
        sample.map = maps[0][0]
        return output[0]

    def generate(self, prompt: Tensor, vision: list[bool], stages: Stages, count: int, banned: list[int]) -> list[int]:
        """Greedily, every token from the beginning."""
        later: list[int] = []
        for _ in range(count):
            logits = self.logits(prompt, vision, later, stages)
            logits[banned] = -torch.inf
            later.append(int(logits.argmax()))
        return later
