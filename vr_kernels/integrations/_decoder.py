"""What this library relies on inside a Hugging Face decoder and a model around it, all of it in this one file.

Held by transformers 5.20 to 5.23, for Qwen2 and Llama and for LLaVA, LLaVA-NeXT and LLaVA-OneVision around them:

    decoder.layers[i]                      called with hidden_states as its only positional argument, and by name with
                                           attention_mask, position_ids (B or 1, N), position_embeddings (cos and sin,
                                           (B or 1, N, d)), past_key_values, and whatever else forward() was given
    layers[i].input_layernorm              RMSNorm in front of self_attn
    layers[i].self_attn.q_proj, k_proj     (B, N, h * d), then RoPE on halves: x cos + (-x2, x1) sin
    layers[i].self_attn.head_dim
    decoder.rotary_emb(x, position_ids)    (cos, sin)
    decoder(...)                           arguments by name or in the order of its signature; returns
                                           last_hidden_state first
    create_causal_mask(layer_idx=i)        the mask for the attention that the config names and the cache of layer i,
                                           from a mask of tokens (B, length of that cache and the new tokens)
    model.language_model                   the decoder of a model that sees; its forward() hands on arguments it does
                                           not know
    config.image_token_id, video_token_id  which tokens stand for an image's and a video's features
    model._get_candidate_generator         what generate() calls, with arguments by name, before it runs a prompt with
                                           tokens that an assistant model or the prompt's own n-grams guess
    cache.get_seq_length(i)                how many tokens layer i holds; a DynamicCache may hold other numbers in other
                                           layers
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

DECODERS = ("qwen2", "llama")
HOLDERS = ("llava", "llava_next", "llava_onevision")


class Decoder:
    """The decoder of a language model, and the part around it that puts image features into the sequence, if any."""

    def __init__(self, operation: str, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{operation}: model is a {type(model).__name__}; it must be a torch.nn.Module")
        holders = [module for module in model.modules() if "language_model" in module._modules]
        decoders = [module for module in model.modules() if _is_decoder(module)]
        kinds = [_kind(module, DECODERS) for module in decoders] + [_kind(module, HOLDERS) for module in holders]
        if len(decoders) != 1 or len(holders) > 1 or None in kinds:
            got = getattr(getattr(model, "config", None), "model_type", None)
            raise ValueError(
                f"{operation}: model is a {type(model).__name__} of type {got!r}; it must be or hold one decoder of "
                f"the types {', '.join(DECODERS)}, by itself or in a model of the types {', '.join(HOLDERS)}"
            )
        self.module: Any = decoders[0]
        self.holder: Any = holders[0] if holders else None
        if "sliding_attention" in getattr(self.module.config, "layer_types", ()):
            raise ValueError(
                f"{operation}: the decoder has layers of sliding attention, whose windows count the tokens of the "
                "prompt; all of them must attend to the whole sequence"
            )

    @property
    def layers(self) -> nn.ModuleList:
        return self.module.layers  # type: ignore[no-any-return]

    def query(self, layer: int, hidden: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
        """The queries (B, R, h, d) that a layer makes of some rows of its input (B, R, D), after RoPE."""
        return self._projected(layer, "q_proj", hidden, embedding)

    def key(self, layer: int, hidden: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
        """The keys (B, N, h_kv, d) that a layer makes of its input (B, N, D), after RoPE."""
        return self._projected(layer, "k_proj", hidden, embedding)

    def _projected(self, layer: int, name: str, hidden: Tensor, embedding: tuple[Tensor, Tensor]) -> Tensor:
        parts: Any = self.layers[layer]
        projected = getattr(parts.self_attn, name)(parts.input_layernorm(hidden))
        heads = projected.unflatten(-1, (-1, parts.self_attn.head_dim))  # (B, R, h, d)
        cos, sin = (part[:, :, None] for part in embedding)  # (B, R, 1, d)
        first, second = heads.chunk(2, -1)
        return heads * cos + torch.cat([-second, first], -1) * sin  # type: ignore[no-any-return]

    def position_embeddings(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, N, d) of positions (B, N)."""
        return self.module.rotary_emb(hidden, positions)  # type: ignore[no-any-return]

    def causal_mask(self, layer: int, hidden: Tensor, valid: Tensor | None, cache: Any) -> Any:
        """What the layer's attention wants as its mask, for new tokens (B, N, D) behind those that its cache holds."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.module.config,
            inputs_embeds=hidden,
            attention_mask=valid,
            past_key_values=cache,
            layer_idx=layer,
        )

    def vision_tokens(self, arguments: dict[str, Any]) -> Tensor:
        """(B, N) bool: where the holder's call with these arguments has vision tokens."""
        found = [getattr(self.holder.config, name, None) for name in ("image_token_id", "video_token_id")]
        tokens = [token for token in found if token is not None]
        ids = arguments.get("input_ids")
        if ids is not None:
            return torch.stack([ids == token for token in tokens]).any(0)
        embeds = arguments["inputs_embeds"]  # as the models themselves recognise them where there are no ids
        table = self.holder.get_input_embeddings()
        rows = [table(torch.tensor(token, device=embeds.device)) for token in tokens]
        return torch.stack([(embeds == row).all(-1) for row in rows]).any(0)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name; those that forward() does not know among the others."""
    # Of the class: an instance's forward may be a wrapper, such as accelerate's.
    names = [name for name in inspect.signature(type(module).forward).parameters if name not in ("self", "kwargs")]
    return dict(zip(names, args, strict=False)) | kwargs


def _is_decoder(module: Any) -> bool:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0 or not hasattr(module, "rotary_emb"):
        return False
    return all(hasattr(getattr(layers[0], "self_attn", None), name) for name in ("q_proj", "k_proj", "head_dim"))


def _kind(module: Any, known: tuple[str, ...]) -> str | None:
    """The known type that a module's configuration is of, or made from: a subclass of LLaVA-NeXT's counts as it."""
    types = [getattr(cls, "model_type", None) for cls in type(getattr(module, "config", None)).__mro__]
    return next((kind for kind in types if kind in known), None)
