"""Samples of different lengths, tiles and images become one batch, and the model sees each as it was alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from python_tests.models.training import _tiny
from vr_kernels.models.training import ChatEncoder, ConversationCollator, ConversationDataset


@pytest.mark.parametrize("tiles", [True, False], ids=["anyres", "one tile"])
def test_a_sample_has_the_same_loss_in_a_batch_as_alone(tiles: bool, tmp_path: Path) -> None:
    changes = {} if tiles else {"image_grid_pinpoints": []}
    model, processor = _tiny.model(**changes).double(), _tiny.processor(**changes)
    dataset = ConversationDataset(_tiny.save_data(tmp_path, 4), tmp_path / "images", ChatEncoder(processor))
    collate = ConversationCollator(0)

    def loss(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        batch = {name: part.double() if part.is_floating_point() else part for name, part in collate(samples).items()}
        return model(**batch).loss * (batch["labels"][:, 1:] != -100).sum()

    samples = [dataset[place] for place in range(4)]  # with one image, none, two, one
    assert len({len(sample["input_ids"]) for sample in samples}) > 1
    alone = sum(loss([sample]) for sample in samples)
    torch.testing.assert_close(loss(samples), alone, rtol=1e-6, atol=0)


def test_samples_without_images_make_a_batch_without_pixels() -> None:
    sample = {"input_ids": torch.tensor([4, 5]), "labels": torch.tensor([-100, 5])}
    batch = ConversationCollator(9)([sample, {name: row[:1] for name, row in sample.items()}])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert batch["input_ids"].tolist() == [[4, 5], [4, 9]]
    assert batch["labels"].tolist() == [[-100, 5], [-100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
