"""Where the weights of a LLaVA-VR model may come from: keys of older layouts, and separate encoders and decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from vr_kernels.integrations.vision_remember import insert_blocks, remove_blocks
from vr_kernels.models.llava_vr._transformers import register_renamings
from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig
from vr_kernels.nn import VisionRemember

if TYPE_CHECKING:
    from typing_extensions import Self

# Every layout that LLaVA's weights were ever saved in, to the names of today; no pattern matches a name of today.
RENAMINGS = {
    # llava-hf until transformers 4.51, and base models without a head
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^language_model": "model.language_model",
    r"^vision_tower": "model.vision_tower",
    r"^multi_modal_projector": "model.multi_modal_projector",
    r"^image_newline": "model.image_newline",
    # the authors' own, a language model that holds the rest
    r"^model\.layers": "model.language_model.layers",
    r"^model\.embed_tokens": "model.language_model.embed_tokens",
    r"^model\.norm": "model.language_model.norm",
    r"^model\.vision_tower\.vision_tower": "model.vision_tower",
    r"^model\.mm_projector\.0": "model.multi_modal_projector.linear_1",
    r"^model\.mm_projector\.2": "model.multi_modal_projector.linear_2",
}

register_renamings(LlavaVRConfig.model_type, RENAMINGS)


class ComposedOfParts:
    """What gives a model its ``from_pretrained_parts``."""

    @classmethod
    def from_pretrained_parts(
        cls,
        vision: Any,
        text: Any,
        *,
        tokenizer: Any = None,
        image_token: str = "<image>",
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> Self:
        """A fresh model of a trained encoder and a trained language model; projector, newline and blocks are new.

        The model changes nothing yet where its blocks stand: it is the baseline of the same projector.

        Args:
            vision: name or folder of a CLIP or SigLIP checkpoint, with or without its text encoder, or such a model.
            text: name or folder of a causal language model, or such a model. Models given are taken over, not copied.
            tokenizer: of the language model; ``image_token`` is added to it where it is unknown, and the embeddings
                grow where they are too few. ``LlavaVRProcessor.from_config(model.config, tokenizer)`` is the processor.
            dtype: of the whole; None: the language model's.
            changes: fields of ``LlavaVRConfig``. Without a tokenizer ``image_token_index`` is one of them.

        Raises:
            ValueError: no placeholder for images is known; fields that do not fit the parts.

        >>> from vr_kernels.models.llava_vr import LlavaVRForConditionalGeneration
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM
        >>> vision = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        ...                                           num_attention_heads=2, image_size=24, patch_size=4))
        >>> text = Qwen2ForCausalLM(Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=64,
        ...                         num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1))
        >>> model = LlavaVRForConditionalGeneration.from_pretrained_parts(
        ...     vision, text, image_token_index=98, vr_levels=[2, 3], vr_options={"num_heads": 2})
        >>> model.model.vision_tower is vision, model.lm_head is text.lm_head
        (True, True)
        """
        tower, language_model = _vision_tower(vision), _causal_language_model(text)
        if tokenizer is not None:
            if image_token not in tokenizer.get_vocab():
                tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})
            changes = {"image_token_index": tokenizer.convert_tokens_to_ids(image_token)} | changes
        if "image_token_index" not in changes:
            raise ValueError(
                f"{cls.__name__}.from_pretrained_parts: tokenizer is None and no image_token_index is given; one of "
                "them must be, for a language model knows no placeholder for images"
            )
        text_config = language_model.config
        changes = {"tie_word_embeddings": bool(text_config.tie_word_embeddings)} | changes
        config = LlavaVRConfig(vision_config=tower.config, text_config=text_config, **changes)
        build: Any = cls
        with torch.device("meta"):
            model = build(config)
        _adopt(model, tower, language_model)
        model = model.to(device=language_model.device, dtype=dtype or language_model.dtype)
        rows = max(config.image_token_index + 1, 0 if tokenizer is None else len(tokenizer))
        if rows > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows)
        return model.eval()  # type: ignore[no-any-return]


def _adopt(model: Any, tower: nn.Module, language_model: Any) -> None:
    """Put the parts into a model without weights, and make what no part has."""
    inner, config = model.model, model.config
    decoder = language_model.base_model
    blocks = {number: VisionRemember(config.vision_remember) for number in config.vr_layers}
    remove_blocks(decoder.layers)
    insert_blocks(decoder.layers, blocks, position=config.vr_position)
    inner.vision_tower, inner.language_model = tower, decoder
    inner.multi_modal_projector = config.projector()
    inner.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
    model.lm_head = language_model.get_output_embeddings()
    inner._init_weights(inner)
    model.generation_config = language_model.generation_config
    model.tie_weights()


def _vision_tower(vision: Any) -> Any:
    """The tower of a checkpoint that may hold a text encoder as well."""
    if isinstance(vision, nn.Module):
        return getattr(vision, "vision_model", vision) if hasattr(vision, "text_model") else vision
    config = AutoConfig.from_pretrained(vision)
    return AutoModel.from_pretrained(vision, config=getattr(config, "vision_config", config))


def _causal_language_model(text: Any) -> Any:
    return text if isinstance(text, nn.Module) else AutoModelForCausalLM.from_pretrained(text)
