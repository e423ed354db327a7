"""``vr-kernels generate``: an answer on stdout, or one sentence and exit code 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result as Invoked
from typer.testing import CliRunner

from python_tests.models import _folders, _llava_vr
from vr_kernels.cli.commands import commands
from vr_kernels.models.inference import Assistant
from vr_kernels.models.prompts import user_message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the models in it, and an image."""
    folder = tmp_path_factory.mktemp("generate")
    _folders.save_llava_vr(folder / "llava_vr")
    _folders.save_llava_next(folder / "llava_next")
    _llava_vr.image().save(folder / "image.png")
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:2000])
    return folder


def generate(model: Path, *options: object, prompt: str = "w1 w2") -> Invoked:
    return CliRunner().invoke(commands, ["generate", "--model", str(model), "--prompt", prompt, *map(str, options)])


@pytest.mark.parametrize("model", ["llava_vr", "llava_next"])
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_the_answer_is_all_of_stdout(folder: Path, model: str, stream: str) -> None:
    result = generate(folder / model, "--image", folder / "image.png", "--max-new-tokens", 6, stream)
    assert result.exit_code == 0, result.output
    assistant = Assistant.load(folder / model)
    inputs = assistant.inputs([[user_message("w1 w2", 1)]], [[_llava_vr.image()]])
    assert result.stdout == assistant.generate(inputs, max_new_tokens=6, do_sample=False)[0] + "\n"


def test_images_come_in_the_order_in_which_they_are_named(folder: Path, tmp_path: Path) -> None:
    _llava_vr.image(seed=1).save(tmp_path / "other.png")
    one, other = folder / "image.png", tmp_path / "other.png"
    prompt = "w1 <image> w2 <image> w3"
    answers = {
        generate(folder / "llava_vr", "--image", first, "--image", second, "--max-new-tokens", 12, prompt=prompt).stdout
        for first, second in [(one, other), (other, one)]
    }
    assert len(answers) == 2


def test_a_drawn_answer_is_drawn_again_with_its_seed(folder: Path) -> None:
    def drawn(seed: int) -> str:
        return generate(folder / "llava_vr", "--temperature", 1.5, "--seed", seed, "--max-new-tokens", 12).stdout

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_one_sentence(folder: Path, tmp_path: Path, missing: str) -> None:
    model = shutil.copytree(folder / "llava_vr", tmp_path / "model")
    (model / missing).unlink()
    refused(generate(model), f"model {model}: ")


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_broken_file_is_one_sentence(folder: Path, tmp_path: Path, broken: str) -> None:
    model = shutil.copytree(folder / "llava_vr", tmp_path / "model")
    (model / broken).write_bytes((model / broken).read_bytes()[:100])
    refused(generate(model), f"model {model}: ")


@pytest.mark.parametrize("kind", ["bert", "nonsense"])
def test_a_model_that_reads_no_images_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    refused(generate(tmp_path), f"model {tmp_path}: it cannot be loaded: ")


def test_a_tokenizer_alone_is_no_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What AutoProcessor gives for a kind of model that has no processor."""
    tokenizer = _llava_vr.tokenizer()
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *args, **options: tokenizer)
    refused(generate(folder / "llava_vr"), "save the model's processor beside it")


def test_no_model_is_refused(folder: Path) -> None:
    refused(generate(folder / "absent"), f"model {folder / 'absent'}: there is no such folder")
    refused(generate(folder), "it holds no model, for it has no config.json")


@pytest.mark.parametrize(
    ("image", "reason"),
    [("absent.png", "is missing"), ("text.png", "cannot be read"), ("cut.png", "cannot be read")],
)
def test_no_image_is_refused_before_the_model_is_loaded(folder: Path, image: str, reason: str) -> None:
    refused(generate(folder / "absent", "--image", folder / image), f"image {folder / image}", reason)


def test_more_images_than_places_are_refused(folder: Path) -> None:
    image = ("--image", folder / "image.png")
    result = generate(folder / "llava_vr", *image, *image, prompt="w1 <image> w2")
    refused(result, "<image> 1 times, and 2 images")


def test_no_cuda_device_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(generate(folder / "llava_vr", "--device", "cuda"), "there is no CUDA device here")


def refused(result: Invoked, *words: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    said = [line for line in result.stderr.splitlines() if line.startswith("vr-kernels generate: ")]
    assert len(said) == 1
    assert result.stderr.rstrip().endswith(said[0])
    assert all(word in said[0] for word in words), said[0]
    assert result.stdout == ""
