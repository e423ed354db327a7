"""LLaVA-VR from nothing to an answer: a small model, both phases on photographs, and a fresh process that asks it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast, Qwen2Config

from vr_kernels.models.inference import Assistant, open_image
from vr_kernels.models.llava_vr import LlavaVRConfig, LlavaVRForConditionalGeneration, LlavaVRProcessor
from vr_kernels.models.prompts import user_message
from vr_kernels.models.training import TrainConfig, train
from vr_kernels.models.training.templates import TEMPLATES

PHOTOGRAPHS = {"astronaut": "an astronaut", "chelsea": "a cat", "coffee": "a cup of coffee", "rocket": "a rocket"}
QUESTION = "What is this?"


def save_data(folder: Path) -> None:
    """The photographs and one turn about each, in LLaVA's format."""
    records = []
    for name, answer in PHOTOGRAPHS.items():
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
        records.append({"id": name, "image": f"{name}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs of what a conversation here has; any other text is spelled out."""
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<pad>", "<image>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pairs.train_from_iterator([TEMPLATES["vicuna"], QUESTION, *PHOTOGRAPHS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs, pad_token="<pad>", eos_token="<eos>", extra_special_tokens={"image_token": "<image>"}
    )


def save_model(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    shared = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlavaVRConfig(
        vision_config=CLIPVisionConfig(image_size=48, patch_size=8, **shared),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **shared,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[],  # one tile of 6x6 features, and so 2x2 tokens
        vr_levels=[2, 3],
        vr_layers=[1, 3],
    )  # fmt: skip
    LlavaVRForConditionalGeneration(config).save_pretrained(folder)
    LlavaVRProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_data(folder)
        model = save_model(folder / "untrained")
        for phase, template, steps in [(1, "plain", 10), (2, "vicuna", 30)]:
            settings = TrainConfig(
                model=str(model), data=str(folder / "data.json"), images=str(folder), output_dir=f"{folder}/{phase}",
                phase=phase, chat_template=template, learning_rate=3e-3, max_steps=steps,
                global_batch_size=4, batch_size_per_device=4, precision="fp32", workers=0, cpu=True,
            )  # fmt: skip
            model, _, loss, _ = train(settings)
            print(f"phase {phase}: mean loss {loss:.2f}")

        image, assistant = folder / "coffee.png", Assistant.load(model)
        inputs = assistant.inputs([[user_message(QUESTION, 1)]], [[open_image(image)]])
        (answer,) = assistant.generate(inputs, max_new_tokens=8, do_sample=False)
        command = ["generate", "--model", str(model), "--image", str(image), "--prompt", QUESTION]
        fresh = subprocess.run(
            [sys.executable, "-c", "from vr_kernels.cli import main; main()", *command, "--max-new-tokens", "8"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        print(f"{QUESTION}{answer}")
        print(f"a fresh process answers alike: {fresh.stdout == answer + chr(10)}")


if __name__ == "__main__":
    main()
