"""What the page takes from a visitor: an image and a question, within limits, refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000  # decoded, 120 MB
MAX_RATIO = 50  # of the sides: some processors scale the shorter side to a tile's, and the longer one with it
MAX_QUESTION = 2000  # characters


def read_image(path: Path) -> Any:
    """A PIL image in RGB, turned as its camera says, and so as a browser shows it.

    The size is read from the file's head, before anything is decoded.

    Raises:
        ValueError: a file that is gone, too large, of another kind, or broken; its folder is not named.
    """
    from PIL import Image, ImageOps

    try:
        size = path.stat().st_size
    except OSError:
        raise ValueError(f"{path.name} is no longer here: upload it again.") from None
    if size > MAX_BYTES:
        raise ValueError(f"{path.name} has {size / 2**20:.1f} MB; it may have {MAX_BYTES // 2**20}.")
    narrow = False
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            narrow = max(image.size) > MAX_RATIO * min(image.size)
            if image.width * image.height <= MAX_PIXELS and not narrow:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass  # Pillow has limits of its own, above ours
    except Exception:  # Pillow's decoders raise whatever a corrupt file makes them stumble over
        raise ValueError(f"{path.name} cannot be read as a PNG, JPEG or WebP image; it may be broken.") from None
    if narrow:
        raise ValueError(f"{path.name} is too narrow: one side may be {MAX_RATIO} times the other.")
    raise ValueError(f"{path.name} has more than {MAX_PIXELS // 10**6} million pixels.")


def check_question(question: str) -> str:
    """Without the white space around it.

    Raises:
        ValueError: an empty or overlong one.
    """
    question = question.strip()
    if not question:
        raise ValueError("There is no question yet: write one.")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"The question has {len(question)} characters; it may have {MAX_QUESTION}.")
    return question


def images_in(folder: Path) -> list[Path]:
    """Its images, by name.

    Raises:
        ValueError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise ValueError(f"examples {folder}: there is no such folder")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    if not images:
        raise ValueError(f"examples {folder}: it has no image; one may end in {', '.join(FORMATS)}")
    return images
