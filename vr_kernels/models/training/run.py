"""A run from its settings to its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vr_kernels.models.training.bad_samples import BadSamples
from vr_kernels.models.training.chat import ChatEncoder
from vr_kernels.models.training.checkpoints import checkpoints
from vr_kernels.models.training.collator import ConversationCollator
from vr_kernels.models.training.config import TrainConfig
from vr_kernels.models.training.conversations import ConversationDataset
from vr_kernels.models.training.phases import GroupSize, set_phase
from vr_kernels.models.training.templates import end_of_turn, find_template

MODEL = "model"  # the folder of the trained model, in the output folder
# Of an image processor, what its tower was trained with; the rest is the size and number of tiles.
_PIXELS = ("image_mean", "image_std", "resample", "rescale_factor", "do_normalize", "do_rescale", "do_convert_rgb")


class TrainResult(NamedTuple):
    """What a run made."""

    model: Path
    steps: int
    loss: float  # mean over the steps that this run took
    bad_samples: int


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    report: Callable[[dict[str, GroupSize]], None] = lambda sizes: None,
) -> TrainResult:
    """Trains a phase. Started in several processes by ``accelerate launch``, each calls this function.

    Args:
        resume: goes on from the last checkpoint in the output folder, where there is one. On one CPU the weights come
            out bit for bit as without the interruption.
        report: is told in the main process what will be trained, before it begins.

    Raises:
        ValueError: settings that do not fit each other, the machine, the data or the model; an output folder that holds
            another run, without resume. BadSampleError, a ValueError: a bad sample, where those stop the run.
        OSError: a model that ``from_pretrained`` does not find.
    """
    from vr_kernels.models.training.record import RecordLog
    from vr_kernels.models.training.trainer import VisionLanguageTrainer

    output_dir = Path(config.output_dir)
    _check_output(output_dir, resume)
    arguments = training_arguments(config)
    model_config = _load_config(config)
    processor, template = _load_processor(config, model_config)
    bad_samples = BadSamples(output_dir / "bad_samples.jsonl")
    dataset = ConversationDataset(
        config.data,
        config.images,
        ChatEncoder(processor, template=template, max_length=config.max_length),
        skipped=bad_samples if config.on_bad_sample == "skip" else None,
    )
    model = _load_model(config, model_config, end_of_turn(config.chat_template, processor.tokenizer))
    if config.gradient_checkpointing:
        # transformers 5.23 has a new name for it.
        renamed = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    # LLaVA-VR gives what it trains a gradient even of text alone; of an encoder's last layers nothing is ever read.
    arguments.ddp_find_unused_parameters = config.train_vision_tower or model_config.model_type != "llava_vr"
    sizes = set_phase(model, config.phase, train_vision_tower=config.train_vision_tower)
    trainer = VisionLanguageTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=ConversationCollator(_pad_token(processor.tokenizer)),
        processing_class=processor,
        learning_rates=config.learning_rates,
        keep=config.keep_checkpoints,
        callbacks=[RecordLog(output_dir, bad_samples)],
    )
    last = trainer.last_checkpoint() if resume else None
    if trainer.is_world_process_zero():
        if last is None:  # what a run met that ended before its first checkpoint is not met by this one
            bad_samples.path.unlink(missing_ok=True)
        report(sizes)
    trainer.accelerator.wait_for_everyone()
    done = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return TrainResult(trainer.save_final_model(MODEL), done.global_step, done.training_loss, bad_samples.count())


def training_arguments(config: TrainConfig) -> Any:
    """The ``TrainingArguments`` of a run. Raises ValueError where the processes cannot share the global batch."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=config.output_dir,
        per_device_train_batch_size=config.batch_size_per_device,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share
        optim="adamw_torch",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        dataloader_num_workers=config.workers,
        seed=config.seed,
        save_steps=config.save_steps,
        logging_steps=config.logging_steps,
        use_cpu=config.cpu,
        remove_unused_columns=False,
        report_to=[],
    )
    if arguments.n_gpu > 1:
        raise ValueError(
            f"TrainConfig: one process sees {arguments.n_gpu} GPUs; start one for each with accelerate launch, or "
            "choose a GPU with CUDA_VISIBLE_DEVICES"
        )
    together = config.batch_size_per_device * arguments.world_size
    if config.global_batch_size % together != 0:
        raise ValueError(
            f"TrainConfig: global_batch_size is {config.global_batch_size}; it must be a multiple of "
            f"{config.batch_size_per_device} samples in each of {arguments.world_size} processes"
        )
    arguments.gradient_accumulation_steps = config.global_batch_size // together
    return arguments


def _check_output(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"TrainConfig: output_dir {folder} is a file; it must be a folder, or not be there")
    if not resume and ((folder / MODEL).exists() or checkpoints(folder)):
        raise ValueError(f"TrainConfig: output_dir {folder} holds another run; resume it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _load_config(config: TrainConfig) -> Any:
    """The model's, with the tiles that the run sets."""
    from transformers import AutoConfig

    from vr_kernels.models.llava_vr import LlavaVRConfig  # and so the Auto classes know it

    try:
        model = AutoConfig.from_pretrained(config.model)
    except OSError as reason:
        raise OSError(
            f"TrainConfig: model is {config.model!r}; it must be a folder that save_pretrained wrote, or the name of a "
            f"model on the hub: {reason}"
        ) from reason
    if config.image_grid_pinpoints is None:
        return model
    if not isinstance(model, LlavaVRConfig):
        raise ValueError(f"TrainConfig: image_grid_pinpoints is for LLaVA-VR, and the model is {model.model_type}")
    return LlavaVRConfig.from_dict(model.to_dict(), image_grid_pinpoints=config.image_grid_pinpoints)


def _load_processor(config: TrainConfig, model: Any) -> tuple[Any, str | None]:
    """The model's processor, and a template to use in place of its own."""
    from transformers import AutoProcessor

    from vr_kernels.models.llava_vr import LlavaVRProcessor

    processor = AutoProcessor.from_pretrained(config.model)
    if config.image_grid_pinpoints is not None:
        own = processor
        processor = LlavaVRProcessor.from_config(
            model, own.tokenizer, chat_template=own.chat_template, image_token=own.image_token
        )
        for name in _PIXELS:
            if hasattr(own.image_processor, name):
                setattr(processor.image_processor, name, getattr(own.image_processor, name))
    template = None if config.chat_template is None else find_template(config.chat_template, processor.image_token)
    # Captions are no conversation: their template is of no use to whom the model is handed.
    if template is not None and config.chat_template != "plain":
        processor.chat_template = template
    return processor, template


def _load_model(config: TrainConfig, model: Any, end: int | None) -> Any:
    """The model; it will end its answers with ``end`` too, as it is trained to."""
    from transformers import AutoModelForImageTextToText

    # Float32: AdamW's small steps would be lost in bfloat16 weights.
    loaded = AutoModelForImageTextToText.from_pretrained(config.model, config=model, dtype=torch.float32)
    if end is not None:
        known = loaded.generation_config.eos_token_id
        ends = [] if known is None else [known] if isinstance(known, int) else list(known)
        if end not in ends:
            loaded.generation_config.eos_token_id = [*ends, end] if ends else end
    return loaded


def _pad_token(tokenizer: Any) -> int:
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
