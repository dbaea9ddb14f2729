"""Reads image files: pixels of any mode as 8-bit RGB, and the ids of label maps."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import jpeg, remembered
from harness.errors import BadFile, DataMissing, UserError, reason
from harness.results import code

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PGM",
}
"""Suffixes of the files that are read as images, those of torchvision's ImageFolder and GIF, and their formats."""

READERS = tuple(sorted({"PPM" if name == "PGM" else name.upper() for name in FORMATS.values()}))
"""Pillow's names of these formats. No other is read, whatever the suffix: for EPS, Pillow starts Ghostscript."""

UPRIGHT, ORIENTATION = 1, 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""
WITH_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # what Pillow's getexif reads
SAMPLE_FORMAT, UNSIGNED = 339, 1  # of TIFF
TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
LATE = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Without these bytes a PNG has no orientation, also not behind its pixels."""
ALTERED = {
    "deep": "16 bits: the high byte is read",
    "clear": "transparency: it is dropped, so what is below it is read",
    "turned": "an EXIF orientation: it is applied",
    "several": "several frames: the first is read",
}
"""What an image may have that is not read as it is."""
SIZES = 5
"""Sizes that are listed; the others are counted."""
NOT_PROCESSED = re.compile(r" \(\d+ bytes not processed\)")
"""What makes the same problem of two files another."""
NAMED, ALIKE = 10, 5
"""Bad files that a message names, in all and of those with the same problem; it counts the others."""
REPLACE = "replace or remove {them}"
"""What helps against bad files."""


def known(paths: Iterable[Path], what: str, find: Callable[[Path], Any]) -> list[Any]:
    """Return what ``each`` yields."""
    return list(each(paths, what, find))


def each(paths: Iterable[Path], what: str, find: Callable[[Path], Any]) -> Iterator[Any]:
    """Yield ``remembered.each`` of what this module finds out, which depends on its code and its decoders too."""
    return remembered.each(paths, f"{what}, {reader()}", find)


@cache
def reader() -> str:
    """Return what decodes images: libraries, their versions, and the hash of this code."""
    import PIL

    codes = ", ".join(code.of_file(Path(file)) for file in (__file__, jpeg.__file__))
    try:
        return f"Pillow {PIL.__version__}, simplejpeg {version('simplejpeg')}, code {codes}"
    except PackageNotFoundError:
        raise UserError(jpeg.MISSING) from None


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are decoded on first use. Raises BadFile for what goes wrong in the block."""
    from PIL import Image, UnidentifiedImageError

    try:
        # not by its path: Pillow would map an uncompressed TIFF into memory, with its sides exchanged if it is turned
        with path.open("rb") as stream, Image.open(stream, formats=READERS) as file:
            yield file
    except BadFile:
        raise
    except UnidentifiedImageError:  # its own message is the path again
        raise BadFile(path, "can't be decoded (no image, or of a kind that is not read)") from None
    except Exception as problem:  # PIL's decoders raise many kinds of errors for a broken file
        why = NOT_PROCESSED.sub("", reason(problem))
        if isinstance(problem, OSError) and problem.errno is not None:  # the system's own word
            raise BadFile(path, f"can't be read ({why})") from problem
        raise BadFile(path, f"can't be decoded ({why})") from problem


def orientation(file: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8.

    That of a PNG may be known only after its pixels are decoded, that of a TIFF only before: Pillow then applies it.
    """
    if file.format == "PNG" and not file.info.keys() & WITH_ORIENTATION:
        return UPRIGHT  # getexif would decode the pixels
    try:
        found = file.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # viewers show images with damaged EXIF as they are stored
        return UPRIGHT
    return int(found) if found in range(2, 9) else UPRIGHT


def array(
    path: Path, turn: bool, least: tuple[int, int] | None = None, into: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return ``rgb`` as [H, W, 3] uint8, written to ``into`` where ``jpeg.decoded`` can."""
    pixels = jpeg.decoded(path, _is_upright, least, into)
    return np.asarray(_rgb(path, turn, least)) if pixels is None else pixels


def rgb(path: Path, turn: bool) -> Image.Image:
    """Return the first frame of an image of any mode, as 8-bit RGB. Raises BadFile.

    16-bit images are reduced to their high byte. Transparency is dropped: the colour below it counts, as in
    torchvision. ``turn``: apply the EXIF orientation; else an image with one raises BadFile.
    """
    from PIL import Image

    return Image.fromarray(array(path, turn))


def _rgb(path: Path, turn: bool, least: tuple[int, int] | None) -> Image.Image:
    """Return ``rgb`` as Pillow decodes it, a JPEG as a part of its size that is at least (height, width) ``least``."""
    from PIL import ImageOps

    with opened(path) as file:
        if least is not None and file.format in ("JPEG", "MPO"):
            height, width = reversed(least) if orientation(file) in SIDEWAYS else least
            file.draft("RGB", (width, height))
        if turn:
            file.load()
        else:
            _load_upright(path, file)
        image = _eight_bits(path, file)
        return (ImageOps.exif_transpose(image) if orientation(file) != UPRIGHT else image).convert("RGB")


def _is_upright(data: bytes) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as file:
        return orientation(file) == UPRIGHT


def _load_upright(path: Path, file: Image.Image) -> None:
    """Decode an image, or raise BadFile if it has an orientation."""
    _check_upright(path, file)
    file.load()
    _check_upright(path, file)


def _check_upright(path: Path, file: Image.Image) -> None:
    if (found := orientation(file)) != UPRIGHT:
        raise BadFile(
            path,
            f"has the EXIF orientation {found}, so that image and label map may fit as stored or as shown: "
            "save both upright, without an orientation",
        )


def _eight_bits(path: Path, file: Image.Image) -> Image.Image:
    """Return a decoded image with 8 bits per channel. Raises BadFile if the range of its numbers is not known."""
    from PIL import Image

    signed = file.format == "TIFF" and set(_numbers(getattr(file, "tag_v2", {}).get(SAMPLE_FORMAT))) - {UNSIGNED}
    if file.mode == "F" or signed or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        kind = "floating-point" if file.mode == "F" else "signed" if signed else "32-bit"
        raise BadFile(path, f"holds {kind} numbers, whose range is not known: save it with 8 or 16 bits, unsigned")
    if file.mode.startswith("I"):  # I;16 and its kin; also I for PNG (by older Pillows) and for PGM, as 0..65535
        high = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        high.info = {key: value for key, value in file.info.items() if key in WITH_ORIENTATION}
        return high
    # converting a palette with transparency right to RGB gives the same pixels and prints a warning
    return file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file


def _numbers(value: Any) -> Sequence[int]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def ids(path: Path) -> Image.Image:
    """Return a decoded label map of mode L or P. Raises BadFile."""
    with opened(path) as file:
        if file.mode not in ("L", "P"):
            raise BadFile(path, f"must hold 8-bit class ids in one channel, its mode is {file.mode}")
        _load_upright(path, file)
        return file.copy()


def size(path: Path) -> list[int]:
    """Return [height, width] from the header of an image with a label map, or of its map. Raises BadFile."""
    with opened(path) as file:
        _check_upright(path, file)
        return [file.height, file.width]


def looked_at(path: Path, turn: bool) -> dict[str, Any]:
    """Return format, mode, size [height, width] and number of frames of an image that was decoded. Raises BadFile."""
    height, width, _ = array(path, turn).shape
    with opened(path) as file:
        frames = getattr(file, "n_frames", 1)
        return {"format": file.format, "mode": file.mode, "size": [height, width], "frames": frames}


def altered(parts: Iterable[Iterable[Path]]) -> list[str]:
    """Return a sentence for each of ALTERED that some images have. Their pixels are not decoded."""
    found, total = Counter[str](), 0
    for images in parts:
        for has in each(images, "altered", _altered):
            found.update([] if isinstance(has, BadFile) else has)
            total += 1
    return [f"{found[key]} of {total} images have {what}" for key, what in ALTERED.items() if found[key]]


def _altered(path: Path) -> list[str]:
    """Return the keys of ALTERED that an image has. Raises BadFile."""
    with opened(path) as file:
        has = {
            "deep": file.mode.startswith("I")
            or re.search(";16[BLN]", str(getattr(file, "tile", ""))),  # 16-bit RGB has mode RGB
            "clear": file.mode in TRANSPARENT or "transparency" in file.info,  # or a colour is transparent
            "several": getattr(file, "n_frames", 1) > 1,
        }
        if file.format == "PNG":
            data = path.read_bytes()
            if any(mark in data for mark in LATE):
                file.load()
        has["turned"] = orientation(file) != UPRIGHT
        return [key for key in ALTERED if has[key]]


def counted_ids(path: Path) -> list[list[int]]:
    """Return [id, number of pixels] for each id of a label map. Raises BadFile."""
    return [[value, count] for value, count in enumerate(ids(path).histogram()[:256]) if count]


def refused(bad: Sequence[BadFile | str], total: int, remedy: str = REPLACE) -> DataMissing:
    """Return the error that names bad files of ``total``: all of them, or the first ones and a count.

    ``remedy`` says what helps, where {them} stands for the files; "": nothing that counts for all of them.
    """
    helps = remedy.format(them="it" if len(bad) == 1 else "them")
    if len(bad) == 1:
        return DataMissing(f"{bad[0]}: {helps}" if helps else str(bad[0]))
    return DataMissing(f"{len(bad)} of {total} files can't be used{helps and f', {helps}'}: {some(bad)}")


def some(bad: Sequence[BadFile | str]) -> str:
    """Return the first ones of many, those with the same problem together, and a count of the others."""
    alike: dict[str, list[str]] = {}
    for each in bad:
        path, problem = (each.path, each.problem) if isinstance(each, BadFile) else (str(each), "")
        alike.setdefault(problem or path, []).append(path)
    texts, named, left = list[str](), 0, len(bad)
    for problem, paths in alike.items():
        if named >= NAMED:
            break
        shown = paths[: min(ALIKE, NAMED - named)]
        more = f" and {len(paths) - len(shown)} more" if len(paths) > len(shown) else ""
        what = "" if problem == paths[0] else f" {problem}" if len(paths) == 1 else f": each {problem}"
        texts.append(", ".join(shown) + more + what)
        named, left = named + len(shown), left - len(paths)
    return "; ".join([*texts, *([f"and {left} more"] if left else [])])


def in_words(images: Iterable[dict[str, Any]]) -> list[str]:
    """Return sentences on images that were ``looked_at``: formats, modes and sizes."""
    kinds, sizes = Counter[str](), Counter[tuple[int, int]]()
    for image in images:
        kinds[f"{image['format']} {image['mode']}"] += 1
        sizes[tuple(image["size"])] += 1
    shown = ", ".join(f"{w} x {h} ({count})" for (h, w), count in sizes.most_common(SIZES))
    rest = f", and {len(sizes) - SIZES} other sizes" if len(sizes) > SIZES else ""
    return [
        "formats and modes: " + ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common()),
        f"width x height: {shown}{rest}",
    ]
