"""LLaVA-VR: LLaVA-NeXT of transformers, with a compressing projector and Vision Remember blocks in its decoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vr_kernels.compression.projectors import Projector
from vr_kernels.integrations.encoder import capture_features
from vr_kernels.integrations.vision_remember import (
    EncodedImages,
    add_prompt,
    cut_if_frozen,
    forget_guesses,
    image_slots,
    insert_blocks,
    note_prompt,
    prefill_context,
    prompt_of_labels,
)
from vr_kernels.models.llava_vr._transformers import LlavaNextPreTrainedModel, can_return_tuple
from vr_kernels.models.llava_vr.checkpoints import ComposedOfParts
from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig
from vr_kernels.models.llava_vr.refusals import CONFIGURED, check_encoding, check_generation
from vr_kernels.models.llava_vr.slots import slots_of_images, stack_tiles
from vr_kernels.nn import VisionRemember


class LlavaVRPreTrainedModel(LlavaNextPreTrainedModel):
    config: LlavaVRConfig
    config_class = LlavaVRConfig
    _no_split_modules: ClassVar[list[str]] = ["VisionRemember"]

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As of every model of transformers, which is also how it makes what a checkpoint lacks.

        A decoder knows nothing of the blocks inside it: it would draw their Linears by its own rule, and nothing else
        of them. Blocks, whose last Linear is zero, and projectors start as newly built ones do.
        """
        own = [module for module in self.modules() if isinstance(module, (VisionRemember, Projector))]
        own = [module for module in own if not getattr(module, "_is_hf_initialized", False)]
        super().initialize_weights()
        for module in own:
            state = dict([*module.named_parameters(), *module.named_buffers()])
            missing = [name for name, tensor in state.items() if not getattr(tensor, "_is_hf_initialized", False)]
            if missing:
                new = VisionRemember(module.config) if isinstance(module, VisionRemember) else self.config.projector()
                made = dict([*new.named_parameters(), *new.named_buffers()])
                for name in missing:
                    state[name].copy_(made[name])

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> None:
        """As of every model of transformers, by default under today's names, whatever layout was loaded."""
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)


class LlavaVRModel(LlavaVRPreTrainedModel, LlavaNextModel):
    """Encoder, projector and decoder, without the language-modelling head.

    The blocks are children of their decoder layers, ``language_model.layers.0.vision_remember``.
    """

    def __init__(self, config: LlavaVRConfig) -> None:
        LlavaNextPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector: Projector = config.projector()
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.vocab_size = config.text_config.vocab_size
        self.language_model = AutoModel.from_config(config.text_config)
        blocks = {number: VisionRemember(config.vision_remember) for number in config.vr_layers}
        insert_blocks(self.language_model.layers, blocks, position=config.vr_position)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images, once for the projector and for the blocks.

        Args:
            pixel_values: (images, tiles, 3, H, W), padded to the most tiles; without AnyRes (images, 3, H, W) too.
            image_sizes: (images, 2), height and width of the originals; not read without AnyRes.
            kwargs: of the vision tower.

        Returns:
            An output whose ``pooler_output`` holds each image's tokens (slots, D), newlines among them, and which
            carries the blocks' ``EncodedImages``.

        Raises:
            ValueError: AnyRes without sizes, or with other tiles than they ask for; position embeddings to be
                interpolated, whose grids have no windows; other levels or rows than the config's.
        """
        check_encoding(type(self).__name__, self.config, kwargs)
        slots, tiles = slots_of_images(self.config, self.multi_modal_projector, len(pixel_values), image_sizes)
        pixel_values = stack_tiles(type(self).__name__, pixel_values, tiles)
        config = self.config
        captured = capture_features(
            self.vision_tower,
            config.captured_levels,
            saliency=config.saliency if config.vr_layers else None,
            saliency_level=config.saliency_level,
        )
        with captured:
            self.vision_tower(pixel_values, **{k: v for k, v in kwargs.items() if k not in CONFIGURED})
        states, saliency = cut_if_frozen(
            captured.features, captured.saliency, pixels=pixel_values, parameters=self.vision_tower.parameters()
        )
        levels = dict(zip(captured.levels, states, strict=True))  # (tiles of all images, H, W, D_v)
        tokens = self.multi_modal_projector([levels[level] for level in config.projector_levels]).tokens
        packed = [
            # A newline's number, -1, is the last row.
            torch.cat([image.flatten(0, 1), self.image_newline[None].to(image)])[table.to(image.device)]
            for image, table in zip(tokens.split(tiles), slots, strict=True)
        ]
        outputs = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=packed)
        if config.vr_layers:
            read = tuple(levels[level].split(tiles) for level in config.vr_levels)
            salient = None if saliency is None else saliency.split(tiles)
            EncodedImages(read, [table[:, None] for table in slots], salient).attach(outputs)
        return outputs

    def _grid(self) -> tuple[int, int]:
        """(n_h, n_w) cells of a tile."""
        return self.multi_modal_projector.output_grid(*self.config.feature_grid)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``LlavaNextModel``.

        Args:
            prompt_mask: (B, T) bool, True at the prompt; the answer's tokens must not be pooled into the guide.
        """
        check_encoding(type(self).__name__, self.config, kwargs)
        if pixel_values is not None and mm_encoder_outputs:
            raise ValueError(f"{type(self).__name__}: pixel_values and mm_encoder_outputs are given; give one of them")
        encoded = dict(mm_encoder_outputs or {})
        if pixel_values is not None and len(pixel_values) > 0:
            encoded["image"] = self.get_image_features(pixel_values, image_sizes, return_dict=True)
        config, embedding = self.config, self.get_input_embeddings()
        touch_all = self.training and torch.is_grad_enabled()
        if config.vr_layers:
            kwargs["vision_remember"], plain = prefill_context(
                image_slots(embedding, config.image_token_id, input_ids, inputs_embeds),
                encoded.get("image"),
                config.vision_remember,
                grid=self._grid(),
                feature_grid=config.feature_grid,
                dtype=embedding.weight.dtype,
                training=touch_all,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                prompt_mask=prompt_mask,
                cu_seq_lens_q=kwargs.get("cu_seq_lens_q"),
            )
            encoded |= {"image": plain}
        if touch_all and encoded.get("image") is None:
            inputs_embeds = embedding(input_ids) if inputs_embeds is None else inputs_embeds
            inputs_embeds, input_ids = inputs_embeds + self._nothing(), None
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=encoded,
            **kwargs,
        )

    def _nothing(self) -> Tensor:
        """Zero, made of projector and newline: data-parallel training of text alone wants a gradient of each."""
        weight, levels = self.image_newline, len(self.config.projector_levels)
        blank = weight.new_zeros(1, *self.config.feature_grid, self.config.vision_config.hidden_size)
        unused: Tensor = self.multi_modal_projector([blank] * levels).tokens.sum() + weight.sum()
        return 0 * unused


class LlavaVRForConditionalGeneration(ComposedOfParts, LlavaVRPreTrainedModel, LlavaNextForConditionalGeneration):
    """LLaVA-VR: images and text in, text out. Generates, trains, saves and loads as every model of transformers.

    ``from_pretrained`` takes fields of the config, and also files of LLaVA-NeXT and LLaVA-OneVision in every layout
    they had, the authors' own among them (with ``config=LlavaVRConfig(...)``); what these lack is new, and is listed.
    ``ignore_mismatched_sizes=True`` lets a projector of another shape be new too.

    >>> from transformers import CLIPVisionConfig, Qwen2Config
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
    ...                           image_size=24, patch_size=4)
    >>> text = Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                    num_attention_heads=2, num_key_value_heads=1)
    >>> config = LlavaVRConfig(vision_config=vision, text_config=text, image_token_index=98, image_grid_pinpoints=[],
    ...                        vr_levels=[2, 3], vr_options={"num_heads": 2})
    >>> model = LlavaVRForConditionalGeneration(config)
    >>> prompt = torch.tensor([[5] + 4 * [98] + [7]])  # a tile has 6x6 patches, and so 2x2 tokens
    >>> model.generate(prompt, pixel_values=torch.randn(1, 3, 24, 24), max_new_tokens=3, do_sample=False).shape
    torch.Size([1, 9])
    """

    def __init__(self, config: LlavaVRConfig) -> None:
        LlavaNextPreTrainedModel.__init__(self, config)
        self.model = LlavaVRModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor | None = None, **kwargs: Any) -> Any:
        """As ``LlavaVRModel.get_image_features``."""
        return self.model.get_image_features(pixel_values, image_sizes, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``LlavaNextForConditionalGeneration``.

        Args:
            labels: (B, T), -100 where nothing is supervised. What stands before the first supervised token is the
                prompt, unless prompt_mask says otherwise.
            prompt_mask: (B, T) bool, True at the prompt. Needed to score answers without labels.
        """
        if labels is not None and prompt_mask is None:
            prompt_mask = prompt_of_labels(labels, attention_mask)
        prompt_mask = forget_guesses(mm_encoder_outputs, prompt_mask, logits_to_keep)
        return super().forward(
            input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            prompt_mask=prompt_mask,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,  # by its name generate() knows that embeddings may be given
        is_first_iteration: bool | None = False,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        images, cache = (mm_encoder_outputs or {}).get("image"), kwargs.get("past_key_values")
        check_generation(type(self).__name__, images, cache, is_first_iteration=is_first_iteration)
        if is_first_iteration:
            note_prompt(mm_encoder_outputs, input_ids, attention_mask, kwargs.get("logits_to_keep", 1))
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        return add_prompt(inputs)
