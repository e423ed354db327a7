"""Vision Remember in an unmodified Qwen2.5-VL: patch, train the blocks alone, generate, save, load.

The model is small and random, so that this runs offline in seconds; with ``Qwen2_5_VLForConditionalGeneration
.from_pretrained(...)`` and its processor in the place of the first two functions it is the real thing.
"""

import tempfile

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vr_kernels import apply_vision_remember, load_vision_remember, save_vision_remember

IMAGE, START, END = 2, 3, 4  # token ids


def small_model() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = {
        "vocab_size": 99, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision | {"fullatt_block_indexes": [3]}, text_config=text, image_token_id=IMAGE,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def small_batch() -> dict[str, torch.Tensor]:
    """One image of 8x12 patches of 14x14 pixels, which become 4x6 tokens, between words."""
    ids = torch.tensor([[10, START, *[IMAGE] * 24, END, 11, 12, 13, 14]])
    pixels = torch.randn(8 * 12, 3 * 2 * 14 * 14)
    grid = torch.tensor([[1, 8, 12]])
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def main() -> None:
    model, batch = small_model().eval(), small_batch()
    before = model(**batch).logits
    apply_vision_remember(model, layers=(1, 3), levels=(2, 4), neighborhood=(1, 1), num_heads=4)
    print("untrained blocks change nothing:", torch.equal(model(**batch).logits, before))

    model.train().requires_grad_(False)
    blocks = [p.requires_grad_() for name, p in model.named_parameters() if ".vision_remember." in name]
    optimizer = torch.optim.AdamW(blocks, lr=1e-3)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100  # the last two words are the answer
    for step in range(2):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")

    model.eval()
    answer = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    print("answer:", answer)
    with tempfile.TemporaryDirectory() as folder:
        save_vision_remember(model, folder)
        again = load_vision_remember(small_model(), folder).eval()
    print(
        "loaded, answers alike:", again.generate(**batch, max_new_tokens=4, do_sample=False)[0, -4:].tolist() == answer
    )


if __name__ == "__main__":
    main()
