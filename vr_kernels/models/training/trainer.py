"""``VisionLanguageTrainer``: what training in phases needs beyond transformers' ``Trainer``.

Relied on inside ``Trainer``, beyond its documented methods: ``_save_checkpoint`` writes all of a checkpoint below
``_get_output_dir`` and from every process, and nothing of it elsewhere (transformers 5.20 to 5.23).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vr_kernels.models.training.checkpoints import STAGING, checkpoints, keep_newest, publish
from vr_kernels.models.training.phases import grouped_parameters


class VisionLanguageTrainer(Trainer):
    """A ``Trainer`` with a learning rate for each group of modules, whose checkpoints appear when they are whole.

    Args:
        learning_rates: by group, where it is not ``args.learning_rate``. Raises ValueError for a group of which nothing
            is trained.
        keep: how many checkpoints stay; None keeps all. It stands for ``args.save_total_limit``.

    All processes must see the same output folder.
    """

    optimizer: Any

    def __init__(self, *, learning_rates: Mapping[str, float], keep: int | None, **options: Any) -> None:
        self.learning_rates, self.keep = dict(learning_rates), keep
        self.stages = False
        super().__init__(**options)
        trained = {group for _, group, parameter in grouped_parameters(self.model) if parameter.requires_grad}
        for group in self.learning_rates:
            if group not in trained:
                raise ValueError(
                    f"TrainConfig: learning_rates names {group}, of which this phase trains nothing; it trains "
                    f"{', '.join(sorted(trained))}"
                )

        if self.is_fsdp_enabled:
            check_shards(self.accelerator.state.fsdp_plugin)
            self._name_shards()
            if self.args.ddp_find_unused_parameters:
                check_unused()
                self.add_callback(_ReduceUnused())

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with two entries a group: weight decay acts on matrices, and not on biases, norms and other vectors."""
        if self.optimizer is None:
            model = self.model if model is None else model
            entries: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for _, group, parameter in grouped_parameters(model):
                if parameter.requires_grad:
                    # Not by name, as transformers decides: it knows none of the blocks' norms.
                    entries.setdefault((group, parameter.dim() > 1), []).append(parameter)
            # The log has the rate of the first entry.
            ordered = sorted(entries.items(), key=lambda entry: entry[0][0] in self.learning_rates)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(
                [
                    {
                        "params": parameters,
                        "lr": self.learning_rates.get(group, self.args.learning_rate),
                        "weight_decay": self.args.weight_decay * decay,
                    }
                    for (group, decay), parameters in ordered
                ],
                **options,
            )
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.output_dir / STAGING if self.stages else self.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._clear_staging()
        self.stages = True
        try:
            with self._config_as_it_came():
                super()._save_checkpoint(model, trial)
        finally:
            self.stages = False
        self._publish(f"checkpoint-{self.state.global_step}")
        if self.is_world_process_zero():
            keep_newest(self.output_dir, self.keep)

    def save_final_model(self, name: str) -> Path:
        """Writes model and processor below the output folder, for ``from_pretrained``; every process calls it."""
        self._clear_staging()
        # The parts of a sharded model meet in the main process.
        state = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.is_world_process_zero():
            staged = self.output_dir / STAGING / name
            with self._config_as_it_came():
                self.model.save_pretrained(staged, state_dict=state)
            self.processing_class.save_pretrained(staged)
        return self._publish(name)

    def last_checkpoint(self) -> Path | None:
        return next(reversed(checkpoints(self.output_dir)), None)

    def _name_shards(self) -> None:
        """Decoder layers and blocks are gathered one at a time, and all else once a step.

        A layer of the encoder does not run where a batch has no image, and the processes would wait for each other.
        """
        layers = self.model.model.language_model.layers
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            blocks = [layer.vision_remember for layer in layers if hasattr(layer, "vision_remember")]
            plugin.transformer_cls_names_to_wrap = sorted({type(module).__name__ for module in (*layers, *blocks)})

    @contextmanager
    def _config_as_it_came(self) -> Iterator[None]:
        """Without ``use_cache``, by which Trainer keeps a step from building a cache that nothing reads."""
        settings = vars(self.model.config)
        own = {name: settings.pop(name) for name in ("use_cache",) if name in settings}
        try:
            yield
        finally:
            settings.update(own)

    def _clear_staging(self) -> None:
        """What a run that was killed left behind is not mixed into the next folder."""
        if self.is_world_process_zero():
            shutil.rmtree(self.output_dir / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _publish(self, name: str) -> Path:
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            publish(self.output_dir / STAGING / name, self.output_dir / name)
        self.accelerator.wait_for_everyone()
        return self.output_dir / name


def check_shards(plugin: Any) -> None:
    """Raises ValueError for the shards of FSDP1: vectors all of them, of which none tells that it is of a matrix."""
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"TrainConfig: accelerate's fsdp_version is {plugin.fsdp_version}; it must be 2, for weight decay acts on "
            "matrices, and FSDP1 shards a matrix into vectors: set fsdp_version: 2, as examples/train/fsdp2.yaml"
        )


def check_unused() -> None:
    """Raises ValueError where torch cannot sum gradients of which a process has none, such as an encoder's of text."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(
            f"TrainConfig: this phase trains modules of which a batch of text alone uses none, which torch "
            f"{torch.__version__} cannot under FSDP; it must have set_reduce_scatter_unused_params, or train by DDP"
        )


class _ReduceUnused(TrainerCallback):
    """Each process sums the same gradients, zero where it has none; it would wait for the other ones' otherwise."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        model.set_reduce_scatter_unused_params(True)
