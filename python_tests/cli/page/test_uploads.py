"""What the page takes, and what it refuses in a sentence."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from python_tests.models import _llava_vr
from vr_kernels.cli.page import uploads


@pytest.mark.parametrize("ending", uploads.FORMATS)
def test_every_format_that_is_named_can_be_read(tmp_path: Path, ending: str) -> None:
    _llava_vr.image(40, 60).save(tmp_path / f"image{ending}")
    image = uploads.read_image(tmp_path / f"image{ending}")
    assert (image.mode, image.size) == ("RGB", (60, 40))


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    orientation, quarter_turn = 0x0112, 6
    exif = Image.Exif()
    exif[orientation] = quarter_turn
    _llava_vr.image(40, 60).save(tmp_path / "turned.jpg", exif=exif)
    assert uploads.read_image(tmp_path / "turned.jpg").size == (40, 60)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut"])
def test_a_broken_image_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "broken.png"
    _llava_vr.image().save(file)
    file.write_bytes(file.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"^broken\.png cannot be read as a PNG, JPEG or WebP image; it may be broken"):
        uploads.read_image(file)


def test_another_format_is_refused_whatever_its_name(tmp_path: Path) -> None:
    _llava_vr.image().save(tmp_path / "image.png", format="GIF")
    with pytest.raises(ValueError, match="cannot be read as a PNG, JPEG or WebP image"):
        uploads.read_image(tmp_path / "image.png")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_head(file: Path, width: int, height: int) -> Path:
    """There is nothing to decode: decoded, the file would be called broken."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return file


@pytest.mark.parametrize("side", [7000, 12_000, 100_000], ids=["large", "suspect to Pillow", "refused by Pillow"])
def test_many_pixels_in_a_small_file_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    file = write_head(tmp_path / "bomb.png", side, side)
    with pytest.raises(ValueError, match=r"bomb\.png has more than 40 million pixels"):
        uploads.read_image(file)


@pytest.mark.parametrize("size", [(2_000_000, 20), (1, 51)], ids=["wide", "high"])
def test_a_narrow_image_is_refused_before_a_processor_makes_a_huge_one_of_it(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    file = write_head(tmp_path / "narrow.png", *size)
    with pytest.raises(ValueError, match=r"^narrow\.png is too narrow: one side may be 50 times the other\.$"):
        uploads.read_image(file)


def test_a_panorama_is_no_narrow_image(tmp_path: Path) -> None:
    _llava_vr.image(2, 100).save(tmp_path / "panorama.png")
    assert uploads.read_image(tmp_path / "panorama.png").size == (100, 2)


def test_a_large_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(uploads.MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"large\.png has 20\.0 MB; it may have 20"):
        uploads.read_image(tmp_path / "large.png")


def test_a_file_that_was_deleted_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^gone\.png is no longer here: upload it again\.$"):
        uploads.read_image(tmp_path / "gone.png")


def test_a_question_is_taken_without_the_space_around_it() -> None:
    assert uploads.check_question(" What is it?\n") == "What is it?"


@pytest.mark.parametrize(("question", "reason"), [(" \n", "no question"), ("w" * 2001, "2001 characters")])
def test_no_question_and_an_overlong_one_are_refused(question: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        uploads.check_question(question)


def test_examples_are_the_images_of_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in uploads.images_in(tmp_path)] == ["a.webp", "b.PNG"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"examples {re.escape(str(tmp_path))}: it has no image"):
        uploads.images_in(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        uploads.images_in(tmp_path / "absent")
