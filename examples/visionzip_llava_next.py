"""VisionZip in an unmodified LLaVA-NeXT: 24 tokens a tile in the place of 36, chosen by what the encoder attends to."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from vr_kernels import apply_visionzip, remove_visionzip

IMAGE = 2  # token id


def small_model() -> LlavaNextForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=48, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    pinpoints = [[48, 96], [96, 48], [96, 96]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_grid_pinpoints=pinpoints
    )
    return LlavaNextForConditionalGeneration(config).eval()


@torch.no_grad()
def answer(model: LlavaNextForConditionalGeneration) -> tuple[int, list[int]]:
    """How many tokens an image of three tiles is, and what a prompt with it is answered."""
    image = {"pixel_values": torch.randn(1, 3, 3, 48, 48, generator=torch.Generator().manual_seed(1))}
    image["image_sizes"] = torch.tensor([[48, 96]])
    # The processor's work: apply_visionzip takes it too.
    count = len(model.get_image_features(**image).pooler_output[0])
    prompt = torch.tensor([[5, *[IMAGE] * count, 7]])
    return count, model.generate(prompt, **image, max_new_tokens=4, do_sample=False)[0, -4:].tolist()


def main() -> None:
    model = small_model()
    print("all tokens and the answer:", *answer(model))
    apply_visionzip(model, dominant=18, contextual=6)
    print("with VisionZip:           ", *answer(model))
    remove_visionzip(model)
    print("without it again:         ", *answer(model))


if __name__ == "__main__":
    main()
