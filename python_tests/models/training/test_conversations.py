"""LLaVA's JSON format: what a record may be, and what becomes of one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from python_tests.models.training import _tiny
from vr_kernels.models.training import BadSampleError, BadSamples, ConversationDataset, to_messages

ASKED = {"from": "human", "value": "What?"}
SAID = {"from": "gpt", "value": "That."}


def lengths(messages: list[Any], images: list[Any]) -> dict[str, torch.Tensor]:
    """Stands for an encoder: what a test needs to know of a sample."""
    return {"number": torch.tensor(int(messages[0]["content"][-1]["text"].split()[-1][:-1]))}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([], "no list of conversations"),
        ({"conversations": []}, "no list of conversations"),
        ({"conversations": [SAID]}, "turn 0 is from 'gpt'.*it must be 'human'"),
        ({"conversations": [ASKED, ASKED]}, "turn 1 is from 'human'.*it must be 'gpt'"),
        ({"conversations": [ASKED, "That."]}, "turn 1 is from None"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0 has the value 3"),
        ({"conversations": [ASKED, SAID], "image": "a.png"}, "has 1 images and 0 times <image>"),
        ({"conversations": [{"from": "human", "value": "<image>"}, SAID]}, "has 0 images and 1 times <image>"),
        ({"conversations": [ASKED, SAID], "image": {"path": "a.png"}}, "must be a name or a list of names"),
        ({"conversations": [ASKED, {"from": "gpt", "value": "<image>"}], "image": "a"}, "turn 1 is from gpt and has"),
    ],
)
def test_a_malformed_record_is_told_apart(record: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        to_messages(record)


def test_images_keep_their_places_among_the_text() -> None:
    turns = [{"from": "human", "value": "<image>\nlike\n<image>? I mean <image>"}, SAID]
    messages, images = to_messages({"image": ["a", "b", "c"], "conversations": turns})
    image = {"type": "image"}
    texts = [{"type": "text", "text": text} for text in ("like", "? I mean ")]
    assert messages[0]["content"] == [image, texts[0], image, texts[1], image]
    assert images == ["a", "b", "c"]


def test_json_lines_hold_the_same_records(tmp_path: Path) -> None:
    data = _tiny.save_data(tmp_path)
    records = json.loads(data.read_text())
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records) + "\n")
    for file in (data, lines):
        dataset = ConversationDataset(file, tmp_path / "images", lengths)
        assert [int(dataset[place]["number"]) for place in range(len(dataset))] == list(range(16))


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_text_in_json_lines_may_hold_other_separators_of_lines(end: str, tmp_path: Path) -> None:
    records = [{"conversations": [{"from": "human", "value": f"a\u2028b\u2029c\x85 {n}?"}, SAID]} for n in range(2)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + end for record in records)
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8", newline="")
    assert ConversationDataset(tmp_path / "data.jsonl", None, lengths).records == records


def spoil(folder: Path) -> None:
    """Sample 0 loses its image, 3 gets half of one, 4 gets a text for one; 5 loses its conversation."""
    images = folder / "images"
    (images / "0-0.png").unlink()
    (images / "3-0.png").write_bytes((images / "3-0.png").read_bytes()[:-200])
    (images / "4-0.png").write_text("no picture")
    records = json.loads((folder / "data.json").read_text())
    records[5]["conversations"] = None
    (folder / "data.json").write_text(json.dumps(records))


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (0, r"^sample 0 \(id 'sample-0'\): image .*0-0.png is missing$"),
        (3, r"^sample 3 \(id 'sample-3'\): image .*3-0.png cannot be read: "),
        (4, r"^sample 4 \(id 'sample-4'\): image .*4-0.png cannot be read: "),
        (5, r"^sample 5 \(id 'sample-5'\): it has no list of conversations$"),
    ],
)
def test_a_bad_sample_names_itself_and_its_file(place: int, problem: str, tmp_path: Path) -> None:
    data = _tiny.save_data(tmp_path)
    spoil(tmp_path)
    dataset = ConversationDataset(data, tmp_path / "images", lengths)
    with pytest.raises(BadSampleError, match=problem):
        dataset[place]
    assert int(dataset[1]["number"]) == 1


def test_a_worker_hands_on_the_same_sentence(tmp_path: Path) -> None:
    data = _tiny.save_data(tmp_path)
    spoil(tmp_path)
    dataset = ConversationDataset(data, tmp_path / "images", lengths)
    with pytest.raises(BadSampleError, match=r"^sample 0 \(id 'sample-0'\): image .* is missing$"):
        next(iter(DataLoader(dataset, batch_size=2, num_workers=1)))


def test_the_next_good_sample_stands_in_for_a_bad_one_and_workers_count_together(tmp_path: Path) -> None:
    data = _tiny.save_data(tmp_path)
    spoil(tmp_path)
    met = BadSamples(tmp_path / "bad_samples.jsonl")
    dataset = ConversationDataset(data, tmp_path / "images", lengths, skipped=met)
    assert met.count() == 0
    for _ in range(2):  # a second epoch meets the same ones
        seen = [int(number) for batch in DataLoader(dataset, batch_size=2, num_workers=2) for number in batch["number"]]
        assert seen == [1, 1, 2, 6, 6, 6, *range(6, 16)]
        assert met.count() == 4
    assert "0-0.png is missing" in met.path.read_text()


def test_a_file_of_nothing_but_bad_samples_ends(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[{}, {}]")
    dataset = ConversationDataset(tmp_path / "data.json", None, lengths, skipped=BadSamples(tmp_path / "bad.jsonl"))
    with pytest.raises(ValueError, match="none of the 2 samples can be trained on"):
        dataset[0]


def test_an_image_without_a_folder_is_a_bad_sample(tmp_path: Path) -> None:
    dataset = ConversationDataset(_tiny.save_data(tmp_path), None, lengths)
    with pytest.raises(BadSampleError, match=r"it has the image 0-0.png, and no folder of images is given"):
        dataset[0]


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot be read: No such file"), ("{", "is not JSON"), ("{}", "holds no list")]
)
def test_a_file_without_records_is_refused(content: str | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        ConversationDataset(tmp_path / "data.json", None, lengths)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        ConversationDataset(_tiny.save_data(tmp_path), tmp_path / "pictures", lengths)
