"""Decodes ordinary JPEG files with libjpeg-turbo itself: to Pillow's pixels, in about 60 % of Pillow's time.

A file that is not ordinary is left to Pillow: CMYK, grey, damaged, enormous. Pillow decides what is an image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

START = b"\xff\xd8\xff"
MARK, SCAN = 0xFF, 0xDA
"""The first byte of each part of a JPEG, and the second one of the part that holds the pixels."""
MAY_BE_TURNED = (b"Exif\0\0", b"tiff:Orientation")
"""Without these bytes a JPEG has no orientation."""
PARTS = (8, 4, 2)
"""The decoder can leave out coefficients, and gives the image at these parts of its size, in less time."""

MISSING = "simplejpeg, which decodes images, is not installed here: pip install simplejpeg"


def part_of(size: tuple[int, int], least: tuple[int, int] | None) -> int:
    """Return by which of PARTS an image of this (height, width) may be divided to be at least as large as ``least``.

    1: by none.
    """
    if least is None:
        return 1
    return next((part for part in PARTS if all(s >= part * t for s, t in zip(size, least, strict=True))), 1)


def _head(data: bytes) -> int:
    """Return where the pixels of a JPEG begin, before which its orientation is; the whole length if that is unclear."""
    at = 2
    while at + 4 <= len(data) and data[at] == MARK:
        if data[at + 1] == SCAN:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def decoded(
    path: Path,
    is_upright: Callable[[bytes], bool],
    least: tuple[int, int] | None = None,
    into: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8] | None:
    """Return the pixels [H, W, 3] of an upright RGB JPEG, or None for a file that Pillow must read.

    ``is_upright`` tells it of a file's bytes that hold one of MAY_BE_TURNED. ``least``: see ``part_of``; the sides of
    the part are rounded up. ``into`` [H, W, 3], contiguous: where the pixels are written, and returned, if the whole
    image has its size. It may be written to even if None is returned.
    """
    from PIL import Image

    try:
        import simplejpeg
    except ImportError:
        raise UserError(MISSING) from None

    try:
        with path.open("rb", buffering=0) as stream:
            start = stream.read(len(START))
            if start != START:
                return None
            data = start + stream.readall()
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
        if any(mark in data[: _head(data)] for mark in MAY_BE_TURNED) and not is_upright(data):
            return None
        part = part_of((height, width), least)
        fits = into is not None and part == 1 and into.shape == (height, width, 3)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // part),
            min_width=-(-width // part),
            min_factor=part,
            buffer=into if fits else None,
        )
    except Exception:  # whatever is wrong with the file, Pillow's reader says it, or reads what can be read
        return None
    return into if fits else pixels
