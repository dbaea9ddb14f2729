"""Data as users supply it: situations that people met in the field, each with the right behaviour.

The numbers are those of the reports: 1 to 24 images, 28 to 38 label maps, 41 CIFAR, 87 file names in records.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import yaml
from PIL import Image, PngImagePlugin
from test_datasets import archive, cifar, make, official, pictures, save, write_tree
from test_segmentation_data import folder, own, whole
from test_start import MAPS

import harness
from harness.data import dataset as contract
from harness.data import host, pixels, remembered
from harness.data.dataset import DataRoot, LoadedData
from harness.errors import BadFile, DataMissing
from harness.experiment import grid
from harness.run import main
from harness.settings import Where

cityscapes = import_module("harness.datasets.cityscapes")
listing = import_module("harness.datasets._listing")

RAMP = np.linspace(0, 65535, 24 * 24).round().astype(np.uint16).reshape(24, 24)


@pytest.fixture(autouse=True)
def remembers_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remember files that were just written, in a folder of the test."""
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(remembered, "_entries", {})
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tree of 2 classes x (6 + 2) images of 24 x 24."""
    write_tree(tmp_path / "base", ["cat", "dog"], train=6, test=2, size=24)
    return tmp_path / "base"


def images(root: Path, **settings: Any) -> Any:
    return make("image_folder", root.parent, **{"folder": root.name, "image_size": 24} | settings)


def refuses(call: Callable[[], Any], *words: str) -> str:
    """Return the one sentence of a refusal, which holds these words."""
    with pytest.raises(DataMissing) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, (word, message)
    return message


def config(root: Path, **dataset: Any) -> str:
    values = {
        "dataset": {"name": "image_folder", "folder": root.name, "image_size": 24} | dataset,
        "model": {"name": "resnet_small", "width": 4},
        "recipe": {"epochs": 1},
        "protocol": {"initial": 4, "budget": 2, "cycles": 2, "start": "warm"},
        "methods": {"Ran": "random", "Margin": "margin"},
        "seeds": [0],
        "where": {"trials": "in_process", "data": str(root.parent), "output": str(root.parent / "out")},
    }
    path = root.parent / "field.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def png(path: Path, samples: np.ndarray, kind: int) -> None:
    """Write a PNG with 16 bits per sample; kind: 0 grey, 2 RGB, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff(path: Path, samples: np.ndarray, sample_format: int) -> None:
    """Write an uncompressed TIFF; sample_format: 1 unsigned, 2 signed, 3 floating-point."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    content = samples.tobytes()
    after = 8 + len(content)
    lists = after + 2 + 12 * 11 + 4

    def entry(tag: int, kind: int, value: int) -> bytes:
        return struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I", *[value, 0][: 5 - kind])

    def each(tag: int, value: int, place: int) -> bytes:
        return entry(tag, 3, value) if channels == 1 else struct.pack("<HHII", tag, 3, channels, place)

    bits = samples.dtype.itemsize * 8
    entries = [
        entry(256, 3, width),
        entry(257, 3, height),
        each(258, bits, lists),
        entry(259, 3, 1),
        entry(262, 3, 1 if channels == 1 else 2),
        entry(273, 4, 8),
        entry(277, 3, channels),
        entry(278, 3, height),
        entry(279, 4, len(content)),
        entry(284, 3, 1),
        each(339, sample_format, lists + 2 * channels),
    ]
    tail = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    tail += struct.pack(f"<{2 * channels}H", *[bits] * channels, *[sample_format] * channels)
    path.write_bytes(b"II*\0" + struct.pack("<I", after) + content + tail)


# ------------------------------------------------------------------------------------------------------ 1: many bits

THREE = np.stack([RAMP] * 3, -1)
FOUR = np.concatenate([THREE, np.full((24, 24, 1), 65535, np.uint16)], -1)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", lambda path: png(path, RAMP, 0)),
        ("rgb.png", lambda path: png(path, THREE, 2)),
        ("rgba.png", lambda path: png(path, FOUR, 6)),
        ("grey.tif", lambda path: tiff(path, RAMP, 1)),
        ("big.tif", lambda path: Image.fromarray(RAMP).save(path)),
        ("rgb.tif", lambda path: tiff(path, THREE, 1)),
        ("grey.pgm", lambda path: path.write_bytes(b"P5 24 24 65535\n" + RAMP.astype(">u2").tobytes())),
        ("rgb.ppm", lambda path: path.write_bytes(b"P6 24 24 65535\n" + THREE.astype(">u2").tobytes())),
    ],
)
def test_1_sixteen_bits_are_scaled_and_never_clipped(base: Path, name: str, write: Any) -> None:
    for file in (base / "train" / "cat").iterdir():
        file.unlink()
    write(base / "train" / "cat" / name)
    read = whole(images(base).load().train_images)[0]
    assert np.abs(read[..., 0].astype(int) - RAMP / 257).max() <= 1, "within a step of the exact value"
    assert len(np.unique(read)) == 256 and (read == read[..., :1]).all()


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("float.tif", lambda path: tiff(path, (RAMP / 65535).astype(np.float32), 3), "floating-point"),
        ("float.tif", lambda path: Image.fromarray((RAMP / 65535).astype(np.float32)).save(path), "floating-point"),
        ("long.tif", lambda path: tiff(path, RAMP.astype(np.uint32), 1), "32-bit"),
        ("signed.tif", lambda path: tiff(path, RAMP.astype(np.int16), 2), "signed"),
        ("byte.tif", lambda path: tiff(path, RAMP.astype(np.int8), 2), "signed"),
    ],
)
def test_1_numbers_without_a_known_range_are_refused_by_name(base: Path, name: str, write: Any, kind: str) -> None:
    write(base / "train" / "cat" / name)
    refuses(images(base).load, str(base / "train" / "cat" / name), f"holds {kind} numbers, whose range is not known")


@pytest.mark.parametrize("samples", [np.float32, np.float64])
def test_1_what_pillow_can_not_read_is_refused_by_name(base: Path, samples: Any) -> None:
    tiff(base / "train" / "cat" / "x.tif", (THREE / 65535).astype(samples), 3)
    refuses(images(base).load, "x.tif can't be decoded (no image, or of a kind that is not read): replace or remove it")


def test_1_sixteen_bits_beside_label_maps(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(24, 24)])
    png(root / "images" / "train" / "000.png", RAMP, 0)
    read = whole(own(root).load().train_images)[0, ..., 0]
    assert np.abs(read.astype(int) - RAMP / 257).max() <= 1


# -------------------------------------------------------------------------------- 3, 4, 6, 14, 15, 18: which files


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".gif", ".ppm", ".bmp", ".webp", ".jpeg"])
def test_3_all_formats_of_torchvision_are_read(base: Path, suffix: str) -> None:
    for part in ("train", "test"):
        for file in (base / part / "cat").iterdir():
            Image.open(file).save(file.with_suffix(suffix))
            file.unlink()
    assert images(base).info().num_train == 12 and images(base).load().train_images.shape == (12, 24, 24, 3)
    for sixteen in sorted({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}):
        assert sixteen in pixels.FORMATS


def test_3_the_formats_are_at_least_torchvision_s() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) <= {*pixels.FORMATS}


def test_3_a_class_without_a_readable_format_says_what_is_there(base: Path) -> None:
    for file in (base / "train" / "cat").iterdir():
        file.rename(file.with_suffix(".heic"))
    refuses(images(base).info, "cat has no image; put at least one there (png, jpg", "not read: 6 .heic")


def test_4_what_is_left_out_is_counted_everywhere(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (base / "train" / "cat" / f"{number}.svg").touch()
    (base / "train" / "dog" / "LICENSE").touch()
    (base / "train" / "._0000.png").touch()
    (base / "train" / "cat" / "._0000.png").touch()
    (base / "train" / "labels.csv").touch()
    (base / "old" / "cat").mkdir(parents=True)
    left_out = "train/: 12 images; left out: 6 files (3 .svg, 1 hidden, 1 in no folder of a class, 1 without a suffix)"
    assert images(base).info().notes == (left_out, "not read: old/")
    written = config(base)
    assert main([written, "--plan"]) == 0
    assert left_out in " ".join(capsys.readouterr().out.split())
    assert main([written]) == 0
    assert f"suite field: {left_out}\nsuite field: not read: old/\nTo run:" in capsys.readouterr().out
    run = json.loads((base.parent / "out" / "run.json").read_text())
    assert run["suites"][0]["data_notes"] == [left_out, "not read: old/"]


def test_4_nothing_is_said_where_nothing_is_left_out(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "train" / ".DS_Store").touch()
    (base / "train" / "cat" / "Thumbs.db").touch()
    assert images(base).info().notes == ()
    assert main([config(base)]) == 0
    assert capsys.readouterr().out.startswith("To run: 2 trials")


def test_6_sub_folders_are_walked_as_torchvision_does(base: Path) -> None:
    from torchvision.datasets import ImageFolder

    for number, place in ((1, "b"), (2, "a"), (3, "a/deep"), (4, "b")):
        (base / "train" / "cat" / place).mkdir(parents=True, exist_ok=True)
        shutil.move(base / "train" / "cat" / f"000{number}.png", base / "train" / "cat" / place)
    data, theirs = images(base).load(), ImageFolder(str(base / "train"))
    assert list(data.names) == [str(Path(path).relative_to(base)) for path, _ in theirs.samples]
    assert data.train_labels.tolist() == theirs.targets and len(data.names) == 12


SYSTEM = ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "lost+found", ".git", "$RECYCLE.BIN"]


@pytest.mark.parametrize("name", SYSTEM)
def test_14_system_folders_are_no_classes(base: Path, name: str) -> None:
    (base / "train" / name).mkdir()
    save(base / "train" / "cat" / name / "copy.png", pictures(1)[0])
    info = images(base).info()
    assert (info.num_classes, info.num_train) == (2, 12)
    assert info.notes == ("train/: 12 images; left out: 1 file (1 hidden)",)
    save(base / "train" / name / "below" / "it.png", pictures(1)[0])
    assert images(base).info().notes == ("train/: 12 images; left out: 2 files (2 hidden)",)


def test_15_splits_have_names(base: Path) -> None:
    (base / "test").rename(base / "val")
    refuses(images(base).info, "has no folder test/", "it has val/: set test: [val]")
    named = images(base, test=["val"])
    assert named.info().num_test == 4 and len(named.load().test_images) == 4
    (base / "train").rename(base / "training")
    refuses(images(base, test=["val"]).info, "has no folder train/", "it has training/: set train: [training]")
    (base / "training").rename(base / "train")
    (base / "empty" / "cat").mkdir(parents=True)
    (base / "other" / "cat").mkdir(parents=True)
    shutil.copy(base / "train" / "cat" / "0000.png", base / "other" / "cat")
    refuses(images(base, test=["vall"]).info, "has no folder vall/", "it has val/, other/: set test: [val]")


def test_15_several_splits_form_one(base: Path) -> None:
    write_tree(base, ["cat", "dog"], train=6, test=2, size=24)
    (base / "test").rename(base / "extra")
    write_tree(base, ["cat", "dog"], train=6, test=2, size=24)
    data = images(base, train=["train", "extra"]).load()
    assert data.train_labels.tolist() == [0] * 8 + [1] * 8
    assert next(name for name in data.names if "extra" in name) == "extra/cat/0000.png" == data.names[6]


@pytest.mark.parametrize("train", [["train", "test"], ["train", "train"], ["train", "train/"], ["train", "x/../test"]])
def test_15_a_split_that_occurs_twice_is_a_mistake_also_if_test_is_not_written(
    base: Path, train: list[str], capsys: Any
) -> None:
    for dataset in ({}, {"name": "segmentation_folder", "image_size": None, "classes": ["a", "b"]}):
        path = Path(config(base, train=train, **dataset))
        path.write_text(path.read_text().replace("  image_size: null\n", ""))
        assert main([str(path), "--check-data"]) == 2
        names, error = ", ".join(train), capsys.readouterr().err
        if train[1].endswith("test"):
            assert f"test: the split 'test' occurs twice in train and test, got train: [{names}], test: [test]" in error
        else:
            assert f"dataset.train: the split 'train' occurs twice, got [{names}]" in error


def test_11_empty_classes_are_not_named_without_end(base: Path) -> None:
    for part in ("train", "test"):
        for number in range(200):
            (base / part / f"c{number}").mkdir()
    message = refuses(
        images(base).info, "train has no image of 'c0', 'c1', 'c10', ", ", ...; put at least one there (png"
    )
    assert len(message) < 1000 and message.count("test has no image of") == 1


@pytest.mark.parametrize("names", [["train"], []])
def test_15_a_wrong_name_is_a_mistake_in_the_config(base: Path, names: list[str], capsys: Any) -> None:
    assert main([config(base, test=names)]) == 2
    problem = "the split 'train' occurs twice in train and test" if names else "must be at least 1 long"
    assert f"field.yaml:5: dataset.test: {problem}" in capsys.readouterr().err


def test_15_a_split_in_the_home_folder_is_one_however_it_is_written(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    here = f"{base.parent}/elsewhere"
    for train, test in ((["~/elsewhere"], [here]), ([here, "~/elsewhere"], ["test"])):
        assert main([config(base, train=train, test=test)]) == 2
        assert f"the split '{here}' occurs twice" in capsys.readouterr().err


def test_18_one_class_is_refused_before_a_run(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        shutil.rmtree(base / part / "dog")
    assert main([config(base)]) == 2
    assert "has one class only, 'cat': a classifier needs at least two" in capsys.readouterr().err
    assert not (base.parent / "out").exists()


@pytest.mark.parametrize(
    "labels", [np.zeros(4, np.int64), np.zeros((4, 8, 8), np.uint8), np.full((4, 8, 8), 255, np.uint8)]
)
def test_18_every_dataset_must_have_two_classes_in_its_pool(labels: Any, base: Path) -> None:
    picture = np.zeros((4, 8, 8, 3), np.uint8)
    data = LoadedData(picture, labels, picture, labels, ("a", "b"), (0.5,) * 3, (0.2,) * 3)

    class One(contract.Dataset):
        def load(self) -> LoadedData:
            return data

    one = One(contract.DatasetSettings(), DataRoot(base, False))
    info = contract.DatasetInfo(4, 4, 2, 3, (8, 8), "", labels.ndim == 3)
    refuses(lambda: contract.loaded(one, info), "a classifier needs at least two")


def test_18_label_maps_of_one_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    for file in (root / "labels" / "train").iterdir():
        save(file, np.full((16, 24), 1, np.uint8))
    refuses(own(root).load, "the label maps of the pool hold only the class 'wall'")
    for file in (root / "labels" / "train").iterdir():
        save(file, np.full((16, 24), 7, np.uint8))
    refuses(own(root).load, "the label maps of the pool hold no class")


# --------------------------------------------------------------------------------------- 8, 19: turned and transparent

TURNED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def oriented(path: Path, image: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_8_orientation_is_applied_to_images_with_a_class(base: Path, orientation: int, suffix: str) -> None:
    image = pictures(1, 24)[0]
    oriented(base / "train" / "cat" / f"0{suffix}", image, orientation)
    names = images(base).load().names
    read = whole(images(base).load().train_images)[names.index(f"train/cat/0{suffix}")]
    assert (read == TURNED[orientation](image)).all()


def test_8_a_photo_of_a_phone_is_upright(base: Path) -> None:
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 16:] = 255  # the right half, which orientation 6 puts to the bottom
    oriented(base / "train" / "cat" / "0.jpg", image, 6)
    data = images(base, image_size=16).load()
    read = whole(data.train_images)[data.names.index("train/cat/0.jpg")]
    assert read[:6].max() < 20 and read[-6:].min() > 235


def test_8_damaged_exif_is_no_orientation(base: Path) -> None:
    image = pictures(1, 24)[0]
    Image.fromarray(image).save(base / "train" / "cat" / "0.png", exif=b"Exif\0\0nothing")
    assert (whole(images(base).load().train_images)[0] == image).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_8_an_orientation_beside_a_label_map_is_refused(tmp_path: Path, suffix: str, orientation: int) -> None:
    root = folder(tmp_path / "mine", suffix=suffix)
    oriented(root / "images" / "train" / f"001{suffix}", pictures(1, 24)[0][:16], orientation)
    refuses(own(root).load, f"001{suffix} has the EXIF orientation {orientation}")


def stored(mode: str) -> tuple[Image.Image, np.ndarray]:
    """Return an image of 4 x 6 pixels in a mode, and what is read of it: smooth, so that a JPEG keeps it."""
    grey = (np.arange(24, dtype=np.uint8).reshape(4, 6) * 8) + 20
    colours = np.stack([grey, 255 - grey, grey // 2], -1)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 256 + 77), np.stack([grey] * 3, -1)
    if mode == "P":
        image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6), "L").convert("P")
        image.putpalette(colours.reshape(24, 3).tobytes())
        return image, colours
    image = Image.fromarray(colours).convert(mode)
    return image, np.asarray(image.convert("RGB"))


KINDS = [
    *((".jpg", {"quality": 100, "subsampling": 0}, mode) for mode in ("L", "RGB")),
    *((".png", {}, mode) for mode in ("L", "RGB", "RGBA", "P", "I;16")),
    *((".tif", {}, mode) for mode in ("L", "RGB", "RGBA", "P", "I;16")),
    *((".tif", {"compression": "tiff_lzw"}, mode) for mode in ("L", "RGB", "RGBA", "P", "I;16")),
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "options", "mode"), KINDS)
def test_8_an_image_of_any_mode_is_turned_or_refused(
    tmp_path: Path, suffix: str, options: dict[str, Any], mode: str, orientation: int
) -> None:
    path, exif = tmp_path / f"0{suffix}", Image.Exif()
    exif[0x0112] = orientation
    image, shown = stored(mode)
    image.save(path, exif=exif, **options)
    expected = TURNED.get(orientation, np.asarray)(shown)
    read = np.asarray(pixels.rgb(path, turn=True))
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).max() <= (4 if suffix == ".jpg" else 0)
    assert pixels.looked_at(path, turn=True)["size"] == [*expected.shape[:2]]
    beside_a_map: list[Callable[[Path], Any]] = [
        lambda path: pixels.rgb(path, turn=False),
        lambda path: pixels.looked_at(path, turn=False),
        pixels.size,
        *([pixels.ids, pixels.counted_ids] if mode in ("L", "P") else []),
    ]
    for read_as in beside_a_map:
        if orientation == 1:
            read_as(path)
        else:
            refuses(lambda read_as=read_as: read_as(path), f"0{suffix} has the EXIF orientation {orientation}")


def test_8_an_orientation_that_imagemagick_wrote_into_a_png_counts(tmp_path: Path) -> None:
    image, shown = stored("I;16")
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    content = exif.tobytes()
    text.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    image.save(tmp_path / "0.png", pnginfo=text)
    assert (np.asarray(pixels.rgb(tmp_path / "0.png", turn=True)) == TURNED[6](shown)).all()
    refuses(lambda: pixels.size(tmp_path / "0.png"), "0.png has the EXIF orientation 6")


def test_19_transparency_is_dropped_without_a_raw_warning(base: Path) -> None:
    red = np.zeros((24, 24, 4), np.uint8)
    red[..., 0] = 255
    save(base / "train" / "cat" / "0.png", red)
    palette = Image.fromarray(np.zeros((24, 24), np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0] * 256)
    palette.save(base / "train" / "cat" / "1.png", transparency=bytes([0, 128]))
    Image.new("CMYK", (24, 24), (0, 255, 255, 0)).save(base / "train" / "cat" / "2.jpg", quality=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = images(base).load()
    for index in range(3):
        position = next(i for i, name in enumerate(data.names) if name.startswith(f"train/cat/{index}."))
        assert np.abs(whole(data.train_images)[position].astype(int) - [255, 0, 0]).max() <= 2


def unlike_the_others(folder: Path) -> list[str]:
    """Write images that are not read as they are, and return the notes on them; 16 others are plain."""
    Image.fromarray(RAMP).save(folder / "a.png")
    png(folder / "b.png", np.repeat(RAMP[:, :, None], 3, 2), 2)
    Image.new("RGBA", (24, 24)).save(folder / "c.png")
    oriented(folder / "d.jpg", pictures(1, 24)[0], 6)
    oriented(folder / "e.png", pictures(1, 24)[0], 3)  # behind its pixels
    frames = [Image.new("L", (24, 24), grey) for grey in (0, 255)]
    frames[0].save(folder / "f.gif", save_all=True, append_images=frames[1:])
    return [
        "2 of 22 images have 16 bits: the high byte is read",
        "1 of 22 images have transparency: it is dropped, so what is below it is read",
        "2 of 22 images have an EXIF orientation: it is applied",
        "1 of 22 images have several frames: the first is read",
    ]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA", "RGBA", "PA"])
def test_19_transparency_of_any_kind_is_counted(base: Path, mode: str) -> None:
    clear = {"P": 0, "L": 0, "RGB": (0, 0, 0)}
    options = {"transparency": clear[mode]} if mode in clear else {}
    suffix = ".tif" if mode == "PA" else ".png"
    Image.new(mode, (24, 24)).save(base / "train" / "cat" / f"a{suffix}", **options)
    if mode in clear:
        Image.new(mode, (24, 24)).save(base / "train" / "cat" / "b.png")
    words = "images have transparency: it is dropped, so what is below it is read"
    assert images(base).load().altered == [f"1 of {17 + (mode in clear)} {words}"]


def test_what_is_not_read_as_it_is_is_noted_at_each_start(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, written, opened = unlike_the_others(base / "train" / "cat"), config(base), list[Path]()
    assert main([written]) == 0
    printed = capsys.readouterr().out
    assert all(f"suite field: {note}\n" in printed for note in notes)
    run = json.loads((base.parent / "out" / "run.json").read_text())
    assert run["suites"][0]["data_notes"] == notes
    monkeypatch.setattr(remembered, "_entries", {})  # another process
    monkeypatch.setattr(pixels, "opened", spied(pixels.opened, opened))
    assert main([written, "where.output=" + str(base.parent / "again")]) == 0
    assert f"suite field: {notes[0]}\n" in capsys.readouterr().out and not opened, "no image is read again"
    assert main([written, "--check-data"]) == 0
    lines = " ".join(capsys.readouterr().out.split())
    assert all(lines.count(note) == 1 for note in notes)


def test_what_is_not_read_as_it_is_is_noted_of_label_maps_and_of_cifar_s_trees(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    Image.new("RGBA", (24, 16)).save(root / "images" / "train" / "000.png")
    assert own(root).load().altered == ["1 of 4 images have transparency: it is dropped, so what is below it is read"]
    write_tree(tmp_path / "cifar10", cifar.CIFAR10.classes, train=1, test=1, size=32)
    Image.new("RGBA", (32, 32)).save(tmp_path / "cifar10" / "train" / "cat" / "a.png")
    (note,) = make("cifar10", tmp_path).load().notes
    assert note.startswith("1 of 21 images have transparency")


# ------------------------------------------------------------------------------------------------ 11: all bad at once


def break_some(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])


def test_11_all_bad_images_are_named_at_once(base: Path) -> None:
    broken = [base / "train" / "cat" / f"000{i}.png" for i in range(3)] + [base / "test" / "dog" / "0000.png"]
    total = len(list(base.rglob("*.png")))
    break_some(broken)
    for call in (images(base).load, images(base).examine):
        words = f"4 of {total} files can't be used, replace or remove them, or set skip_unreadable"
        message = refuses(call, words, *map(str, broken))
        assert message.count("can't be decoded") == 1, "what is wrong with all of them is said once"


def test_11_the_first_ten_and_a_count(tmp_path: Path) -> None:
    write_tree(tmp_path / "base", ["cat", "dog"], train=12, test=1, size=24)
    break_some(sorted((tmp_path / "base" / "train" / "cat").iterdir()))
    message = refuses(
        images(tmp_path / "base").load, "12 of 26 files can't be used", "0004.png and 7 more: each can't be decoded ("
    )
    assert message.count(".png") == 5


def test_11_bad_files_are_told_together_by_what_is_wrong() -> None:
    def bad(problem: str, *names: str) -> list[BadFile]:
        return [BadFile(name, problem) for name in names]

    a, b, c, d = bad("is a", *"1234567"), bad("is b", "8"), bad("is c", *"9ABCDE"), bad("is d", "F", "G")
    assert pixels.some([*a[:2], *b, *a[2:3]]) == "1, 2, 3: each is a; 8 is b"
    assert pixels.some([*a, *b]) == "1, 2, 3, 4, 5 and 2 more: each is a; 8 is b"
    assert (
        pixels.some([*a, *b, *c, *d])
        == "1, 2, 3, 4, 5 and 2 more: each is a; 8 is b; 9, A, B, C and 2 more: each is c; and 2 more"
    )
    assert pixels.some([f"text {number}" for number in range(11)]).endswith("text 8; text 9; and 1 more")
    copied = pickle.loads(pickle.dumps(b[0]))
    assert (str(copied), copied.problem) == ("8 is b", "is b")


def test_11_bad_images_are_left_out_on_request_and_noted(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_pool = whole(images(base).load().train_images)
    break_some([base / "train" / "cat" / f"000{i}.png" for i in (1, 4)])
    dataset = images(base, skip_unreadable=True)
    (note,) = dataset.info().notes
    assert (
        note.startswith("left out as unreadable: 2 training images: ") and "cat/0004.png: each can't be decoded" in note
    )
    data = dataset.load()
    assert dataset.info().num_train == len(data.train_images) == 10
    assert (whole(data.train_images) == np.delete(whole_pool, [1, 4], 0)).all()
    assert len(images(base, skip_unreadable=True, limit=4).load().train_images) == 4
    assert main([config(base, skip_unreadable=True)]) == 0
    run = json.loads((base.parent / "out" / "run.json").read_text())
    assert run["suites"][0]["data_notes"] == [note] and f"suite field: {note}" in capsys.readouterr().out
    break_some(sorted((base / "train" / "cat").iterdir()))
    refuses(images(base, skip_unreadable=True).info, "no readable training image of the class 'cat'")


def test_11_check_data_reads_everything_and_runs_nothing(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = config(base)
    shutil.copy(base / "train" / "cat" / "0000.png", base / "test" / "dog" / "same.png")
    Image.fromarray(RAMP).save(base / "train" / "cat" / "deep.tif")
    assert main([written, "--check-data"]) == 0
    printed = capsys.readouterr().out
    lines = " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80 or str(base) in printed
    for words in (
        "13 training and 5 test images, 2 classes; 24 x 24 x 3",
        "formats and modes: PNG RGB (17), TIFF I;16 (1) width x height: 24 x 24 (18)",
        "1 of 18 images have 16 bits",
        "training images of each class: cat 7, dog 6",
        "1 of 5 test images are also training images, by the bytes of the files",
        f"fingerprint {images(base).load().fingerprint}",
    ):
        assert words in lines
    assert not (base.parent / "out").exists()
    break_some([base / "train" / "dog" / f"000{i}.png" for i in (0, 5)])
    assert main([written, "--check-data"]) == 2
    lines = " ".join(capsys.readouterr().out.split())
    assert "field CAN'T RUN: 2 of 18 files can't be used" in lines and "dog/0005.png" in lines


def test_11_a_plan_says_what_check_data_has_found(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, broken = config(base), [base / "train" / "dog" / f"000{i}.png" for i in (0, 5)]
    whole_files = [path.read_bytes() for path in broken]
    break_some(broken)

    def planned(*words: str) -> str:
        assert main([written, "--plan", *words]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "--check-data has" not in planned()
    assert main([written, "--check-data"]) == 2
    capsys.readouterr()
    words = "--check-data has found bad files, which are as they were: 2 of 16 files can't be used, replace or remove"
    assert words in planned()
    assert "--check-data has" not in planned("dataset.skip_unreadable=true"), "they are left out"
    broken[0].write_bytes(whole_files[0])
    assert words in planned(), "one is left"
    broken[1].write_bytes(whole_files[1])
    assert "--check-data has" not in planned()
    break_some(broken)
    main([written, "--check-data"])
    (file,) = remembered.cache_folder().glob("problem-*")
    for damaged in ("", "[]", "{}", '{"problem": 1, "files": {}}', '{"problem": "x", "files": [1]}'):
        file.write_text(damaged)
        assert "--check-data has" not in planned()


def test_11_check_data_respects_only_and_finds_what_is_remembered_wrongly(tmp_path: Path, capsys: Any) -> None:
    root = folder(tmp_path / "mine")
    values = yaml.safe_load(Path(config(tmp_path / "base")).read_text())
    maps = {"name": "segmentation_folder", "folder": "mine", "classes": ["a", "b", "c"], "ignore": 7}
    good, bad = ({k: v for k, v in values.items() if k != "where"} for _ in range(2))
    good |= {"dataset": maps, "model": {"name": "drn_small", "width": 4}, "protocol": values["protocol"]}
    good["protocol"] = {"initial": 2, "budget": 1, "cycles": 1, "start": "warm"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"suites": {"good": good, "bad": bad}, "where": values["where"]}))
    assert main([str(path), "--check-data", "--only", "suite=good"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "good: images and label maps" in printed and "bad" not in printed
    assert re.search(r"pixels of 4 label maps: a [\d.]+%, b [\d.]+%, c [\d.]+%, no class [\d.]+%", printed)
    assert main([str(path), "--check-data"]) == 2
    assert "bad CAN'T RUN: there is no folder" in " ".join(capsys.readouterr().out.split())
    memory = remembered._file(str(root / "labels" / "train"))
    stored = {name: json.loads(text) for name, text in (line.split("\t") for line in memory.read_text().splitlines())}
    stored['"000.png"'][f"ids, {pixels.reader()}"] = [[9, 1]]
    memory.write_text("".join(f"{name}\t{json.dumps(entry)}\n" for name, entry in stored.items()))
    remembered._entries.clear()
    assert main([str(path), "--plan", "--only", "suite=good"]) == 0
    assert "CAN'T RUN" in capsys.readouterr().out, "what is remembered counts"
    assert main([str(path), "--check-data", "--only", "suite=good"]) == 0, "but here everything is read again"
    remembered._entries.clear()
    capsys.readouterr()
    assert main([str(path), "--plan", "--only", "suite=good"]) == 0
    assert "CAN'T RUN" not in capsys.readouterr().out, "and remembered"


# ------------------------------------------------------------------------------ 22, 24: memory, and what is no file


def test_22_data_that_does_not_fit_is_refused_with_its_bytes(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "free_memory", lambda: 100_000)
    assert main([config(base), "dataset=digits", "--plan"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    words = "CAN'T RUN: its images take 115.0 kB of memory, and 100.0 kB are free, of which data may take 90%: set "
    assert words in printed
    assert main([config(base), "dataset=digits"]) == 2
    assert "115.0 kB" in capsys.readouterr().err and not (base.parent / "out").exists()
    assert main([config(base), "dataset=digits", "dataset.limit=40", "dataset.test_limit=20", "--plan"]) == 0
    assert "3.8 kB of memory" in " ".join(capsys.readouterr().out.split())


def test_22_the_datasets_of_all_suites_must_fit_together(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "free_memory", lambda: 1112)  # 90 % of it are 1000.8
    here, on_ray = Where(trials="in_process"), Where(trials="ray")
    grid.check_memory(600, here, "", 400)
    words = "0.6 kB of memory besides the 0.4 kB of other suites, and 1.1 kB"
    refuses(lambda: grid.check_memory(600, here, "", 401), words)
    grid.check_memory(300, on_ray, "", 200)
    words = "0.6 kB of memory besides the 0.4 kB of other suites, with the copy for Ray's workers, and 1.1 kB are free"
    refuses(lambda: grid.check_memory(300, on_ray, "", 201), words)
    monkeypatch.setattr(grid, "free_memory", lambda: None)
    grid.check_memory(10**15, on_ray, "")


@pytest.mark.long
def test_22_the_data_of_finished_suites_need_not_fit(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path(config(base))
    suite = yaml.safe_load(written.read_text())
    top = {key: suite.pop(key) for key in ("where", "seeds")}
    whole, small = ({"dataset": {"name": "digits", "limit": n, "test_limit": 20}} for n in (40, 20))
    suites = {"whole": suite | whole, "small": suite | small}  # 3840 and 2560 bytes
    written.write_text(yaml.safe_dump(top | {"suites": suites}, sort_keys=False))
    monkeypatch.setattr(grid, "free_memory", lambda: 6500)
    assert main([str(written)]) == 2
    assert "of memory besides the 3.8 kB of other suites, and 6.5 kB are free" in capsys.readouterr().err
    assert main([str(written), "--only", "suite=whole"]) == 0
    assert main([str(written), "--resume"]) == 0, "one of two is finished"
    monkeypatch.setattr(grid, "free_memory", lambda: 1)
    assert main([str(written), "--resume"]) == 0, "nothing is loaded"
    capsys.readouterr()
    assert main([str(written), "--plan"]) == 0
    assert "CAN'T RUN" not in capsys.readouterr().out
    assert main([str(written), "--resume", "seeds=[0,1]"]) == 2
    assert "suite whole: its images take 3.8 kB" in capsys.readouterr().err


def test_22_memory_that_runs_out_is_a_sentence(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("harness.datasets._trees").np, "empty", _no_memory)
    dataset = images(base)
    refuses(
        lambda: contract.loaded(dataset, contract.facts(dataset)), "does not fit into memory: lower dataset.image_size"
    )


def test_22_the_remedy_names_the_keys_that_a_dataset_has(base: Path, tmp_path: Path) -> None:
    limits = "set dataset.limit and dataset.test_limit"
    assert contract.less(images(base).settings) == f"lower dataset.image_size, or {limits}"
    maps = own(folder(tmp_path / "mine"))
    assert contract.less(maps.settings) == f"lower dataset.scale or dataset.size, or {limits}"
    assert contract.less(make("cifar10", tmp_path).settings) == limits


def _no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


def test_22_files_need_not_fit(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = own(folder(tmp_path / "mine")).info()
    assert info.from_files and info.in_memory == 0 and info.nbytes == 4 * 16 * 24 * 4
    monkeypatch.setattr(grid, "free_memory", lambda: 1)
    assert images(base).info().nbytes == 16 * 24 * 24 * 3 and main([config(base)]) == 0


def test_22_free_memory_is_the_machine_s_or_the_container_s(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    (cgroup / "memory").mkdir(parents=True)
    assert host.free_memory(proc, cgroup) is None, "a system that does not tell"
    every = len(os.sched_getaffinity(0))
    assert host.processors(proc, cgroup) == every
    for limit, count in (("max 100000", every), ("20000 100000", 1), ("100001 100000", min(every, 2)), ("none", every)):
        (cgroup / "cpu.max").write_text(f"{limit}\n")
        assert host.processors(proc, cgroup) == count
    (cgroup / "cpu.max").unlink()
    (cgroup / "cpu").mkdir()
    for quota, count in ((-1, every), (50_000, 1), (10**9, every)):
        (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert host.processors(proc, cgroup) == count
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3000 kB\n")
    assert host.free_memory(proc, cgroup) == 3000 * 1024
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5000\n")
    assert host.free_memory(proc, cgroup) == 3000 * 1024
    (cgroup / "memory.max").write_text("9000\n")
    (cgroup / "memory.stat").write_text("anon 1\ninactive_file 700\n")
    assert host.free_memory(proc, cgroup) == 4700
    shutil.copy(cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")
    (cgroup / "memory" / "memory.usage_in_bytes").write_text("8999\n")
    assert host.free_memory(proc, cgroup) == 1, "without memory.stat"
    (cgroup / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20\n")
    assert host.free_memory(proc, cgroup) == 21


@pytest.mark.parametrize(
    ("line", "root", "limit", "used", "cached"),
    [
        ("0::{}", ".", "memory.max", "memory.current", "inactive_file"),
        ("7:cpu,memory:{}", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_22_free_memory_is_the_job_s_or_the_service_s(
    tmp_path: Path, line: str, root: str, limit: str, used: str, cached: str
) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemAvailable:    3000 kB\n")
    step = cgroup / root / "system.slice" / "job_7" / "step_0"
    step.mkdir(parents=True)

    def sets(folder: Path, most: str, now: int, files: int) -> None:
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} {files}\n")

    named = "12:devices:/other\n" + line + "\n1:name=systemd:/elsewhere\n"
    (proc / "self" / "cgroup").write_text(named.format("/system.slice/job_7/step_0"))
    assert host.free_memory(proc, cgroup) == 3000 * 1024, "no group has a limit"
    sets(step, "9223372036854771712", 100, 0)  # none, in version 1
    sets(step.parent, "9000", 5000, 700)
    assert host.free_memory(proc, cgroup) == 4700, "the limit of a group above"
    sets(step, "2000", 1500, 0)
    assert host.free_memory(proc, cgroup) == 500, "the group's own"
    sets(step, "max", 100, 0)
    sets(cgroup / root, "8000", 7500, 50)
    assert host.free_memory(proc, cgroup) == 550, "the root's, which is a container's own group"
    for path in ("/docker/of/the/host", "/../job_8", "/"):
        (proc / "self" / "cgroup").write_text(named.format(path))
        assert host.free_memory(proc, cgroup) == 550
    (proc / "self" / "cgroup").write_text("nothing\n")
    assert host.free_memory(proc, cgroup) == 550


def test_23_test_images_that_are_also_training_images_are_counted(base: Path, capsys: Any) -> None:
    for number in range(2):
        shutil.copy(base / "train" / "cat" / f"000{number}.png", base / "test" / "dog" / f"copy{number}.png")
    assert images(base).load().copies == 2
    assert main([config(base)]) == 0
    assert (
        "suite field: 2 of 6 test images are also training images, by the bytes of the files\n"
        in capsys.readouterr().out
    )
    run = json.loads((base.parent / "out" / "run.json").read_text())
    assert run["suites"][0]["data_notes"] == ["2 of 6 test images are also training images, by the bytes of the files"]


def test_23_files_are_compared_by_their_bytes(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    assert own(root).load().copies == 0
    shutil.copy(root / "images" / "train" / "000.png", root / "images" / "test" / "001.png")
    assert own(root).load().copies == 1


def denied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the listing of a folder fail, as for a user without a right to it; root may list every folder."""
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == place:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("place", [".", "train", "train/cat", "train/cat/sub"])
def test_24_a_folder_that_may_not_be_listed_is_a_sentence(
    base: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (base / "train" / "cat" / "sub").mkdir()
    written = config(base)
    denied(base / place, monkeypatch)
    assert main([written]) == 2
    assert f"{base / place} can't be listed (Permission denied)\n" in capsys.readouterr().err


def test_24_a_file_that_may_not_be_read_is_no_broken_image(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = base / "train" / "cat" / "0000.png", Path.open

    def opens(self: Path, *arguments: Any, **keys: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))  # root may read every file
        return read(self, *arguments, **keys)

    monkeypatch.setattr(Path, "open", opens)
    refuses(images(base).examine, f"{path} can't be read (Permission denied): replace or remove it")


def test_24_what_is_no_folder_is_told_as_what_it_is(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(base.parent / "pipe")
    (base.parent / "file").write_text("")
    for name, kind in (("pipe", "a pipe"), ("file", "a file")):
        path = base.parent / name
        refuses(images(path).info, f"{path} is {kind}, not a folder; expected: train/<class>/<image>")
        assert main([config(base), f"where.data={path}"]) == 2
        assert f"where.data: {path} is {kind}; it must be the folder that" in capsys.readouterr().err
        if not (base / "images").exists():
            (base / "images").mkdir()
        path.rename(base / "images" / "train")
        refuses(own(base).info, f"{base / 'images' / 'train'} is {kind}, not a folder; expected: images/<split>")
        (base / "images" / "train").unlink()


def test_24_of_label_maps_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine")
    denied(root / "labels" / "test", monkeypatch)
    refuses(own(root).info, "test can't be listed (Permission denied)")


def test_24_a_file_that_vanishes_is_a_sentence(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    data = own(root).load()
    (root / "images" / "train" / "001.png").unlink()
    refuses(lambda: data.fingerprint, "001.png can't be read (No such file or directory)")
    with pytest.raises(DataMissing, match=r"001\.png can't be read \(No such file"):
        whole(data.train_images)


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2100])
def test_24_a_name_that_is_too_long_is_a_sentence(base: Path, name: str, capsys: Any) -> None:
    for settings in ({"folder": name}, {"test": [name]}):
        assert main([config(base, **settings)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        assert "too long" in said or "at most 4096 characters" in said


def test_24_other_errors_of_the_system_are_sentences(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(self: Any) -> Any:
        raise OSError(5, "Input/output error", "/disk/x")

    dataset = images(base)
    monkeypatch.setattr(type(dataset), "info", info)
    refuses(lambda: contract.facts(dataset), "/disk/x can't be read (Input/output error)")


@pytest.mark.usefixtures("never_hangs")
def test_pipes_and_circles_are_left_out_and_never_opened(base: Path) -> None:
    os.mkfifo(base / "train" / "cat" / "pipe.png")
    (base / "train" / "cat" / "me").symlink_to(".")
    (base / "train" / "cat" / "up").symlink_to("..")
    (base / "train" / "cat" / "a.png").symlink_to("b.png")
    (base / "train" / "cat" / "b.png").symlink_to("a.png")
    (base / "train" / "dog" / "null.png").symlink_to(os.devnull)
    deep = base / "train" / "dog" / "deep"
    deep.mkdir()
    for _ in range(1200):  # deeper than Python's recursion
        (deep := deep / "d").mkdir()
    dataset = images(base)
    assert dataset.info().num_train == len(dataset.load().train_images) == 12
    left_out = "2 broken links, 2 links to a folder above, 2 pipes or devices"
    assert dataset.info().notes == (f"train/: 12 images; left out: 6 files ({left_out})",)
    subprocess.run(["rm", "-r", base / "train" / "dog" / "deep"], check=True)  # shutil's removal is recursive


@pytest.mark.usefixtures("never_hangs")
def test_a_link_to_a_folder_elsewhere_is_followed(base: Path, tmp_path: Path) -> None:
    (base / "train" / "cat").rename(tmp_path / "cats")
    (base / "train" / "cat").symlink_to(tmp_path / "cats")
    (tmp_path / "cats" / "up").symlink_to(tmp_path)
    assert images(base).info().num_train == 12


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("place", ["images/train/009.png", "labels/train/001.png", "lists"])
def test_pipes_among_label_maps(tmp_path: Path, place: str) -> None:
    root = folder(tmp_path / "mine")
    (root / place).unlink(missing_ok=True)
    os.mkfifo(root / place)
    if place.startswith("images"):
        assert own(root).info().notes == ("images/train: 2 images; left out: 1 file (1 pipe or device)",)
    elif place.startswith("labels"):
        refuses(own(root).info, "labels/train/001.png is no file: it must hold the labels of")
        assert "001.png can't be read (it is no regular file)" in own(root, skip_unreadable=True).info().notes[-1]
    else:
        (root / place).rename(root / "train.txt")
        refuses(own(root, lists="{split}.txt", images="images").info, "train.txt is no file")


# -------------------------------------------------------------------------------------------- 28: maps of trainIds


@pytest.fixture
def city(tmp_path: Path) -> Path:
    cityscapes.write_cityscapes(tmp_path, train=2, test=2)
    return tmp_path


def changed_ids(root: Path, table: np.ndarray) -> None:
    for path in (root / "cityscapes" / "gtFine").rglob("*_labelIds.png"):
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path, compress_level=1)


def test_28_train_ids_are_refused_for_what_they_are(city: Path) -> None:
    right = make("cityscapes", city).load()
    assert right.notes == () and right.train_labels.shape == (2, 1024, 2048)
    changed_ids(city, cityscapes.TABLE)
    for call in (make("cityscapes", city).info, make("cityscapes", city).load, make("cityscapes", city).examine):
        message = refuses(
            call, "gtFine_labelIds.png: each holds the id 255; allowed: 0..33", "used, no official labelIds"
        )
        assert 0 < message.index("look like trainIds") < message.index(str(city)), "not at the end of a long list"


def test_28_an_id_that_does_not_exist(city: Path) -> None:
    table = np.arange(256, dtype=np.uint8)
    table[7] = 40
    changed_ids(city, table)
    message = refuses(make("cityscapes", city).load, "holds the id 40; allowed: 0..33")
    assert "trainIds" not in message


def test_28_train_ids_are_refused_also_if_all_of_their_ids_exist(city: Path) -> None:
    """As those of maps without a pixel that is ignored."""
    changed_ids(city, np.where(cityscapes.TABLE == 255, 0, cityscapes.TABLE).astype(np.uint8))
    for call in (make("cityscapes", city).load, make("cityscapes", city).examine):
        refuses(
            call, "gtFine/train: no label map holds an id above 19, such as 23 of the sky, so these look like trainIds"
        )


def test_28_few_pixels_with_a_class_are_noted(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    assert own(root).load().notes == ()
    ids = np.full((16, 24), 7, np.uint8)
    ids[:4] = np.arange(24) % 3
    for split in ("train", "test"):
        for number in range(2):
            save(root / "labels" / split / f"{number:03}.png", ids)
    assert own(root).load().notes == ("only 25% of the pixels of the label maps have a class",)


def test_28_the_table_and_so_the_fingerprints_are_unchanged(city: Path) -> None:
    assert set(cityscapes.TABLE.tolist()) == {*range(19), 255}


# ------------------------------------------------------------------------------ 32: all label maps before the start


def test_32_a_wrong_id_anywhere_is_found_before_the_start(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 12)
    for number in (5, 7):
        save(root / "labels" / "train" / f"{number:03}.png", np.full((16, 24), 9, np.uint8))
    own(root, limit=2).load()
    words = "2 of 48 files can't be used, name all classes in classes (ignore takes one id, now 7), or change the "
    message = refuses(own(root).load, words, "holds the id 9; allowed: 0..2, 7 (7 is ignored)")
    assert "005.png" in message and "007.png" in message


@pytest.mark.parametrize(
    ("found", "ignore", "words"),
    [
        ((0, 9), None, "set ignore: 9 if its pixels do not count, or name its class in classes: "),
        ((0, 9), 255, "set ignore: 9 instead of 255 if its pixels do not count, or name its class in classes: "),
        ((1, 9), 0, "name all classes in classes (ignore takes one id, now 0), or change the label maps: "),
        ((0, 8, 9), None, "name all classes in classes (ignore takes one id, which does not count), or change the "),
        ((7, 9), 7, "name all classes in classes (ignore takes one id, now 7), or change the label maps: "),
    ],
)
def test_32_ignore_is_named_against_a_wrong_id_before_the_files(
    tmp_path: Path, found: tuple[int, ...], ignore: int | None, words: str
) -> None:
    root = folder(tmp_path / "mine")
    for path in (root / "labels").rglob("*.png"):
        save(path, np.resize(np.array(found, np.uint8), (16, 24)))
    message = refuses(own(root, ignore=ignore).load, f"4 of 8 files can't be used, {words}")
    assert message.index(words) < message.index(str(root))


@pytest.mark.parametrize("hook", ["info", "examine", "load"])
def test_32_whatever_is_wrong_with_label_maps_is_named_at_once(hook: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 12)
    images, labels, test = root / "images" / "train", root / "labels" / "train", root / "labels" / "test"
    for path in (images / "001.png", labels / "002.png", images / "000.png", test / "000.png"):
        path.write_bytes(b"x")
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:-200])  # its header is whole
    (labels / "004.png").unlink()
    save(labels / "005.png", np.zeros((8, 24), np.uint8))
    save(labels / "006.png", np.full((16, 24), 9, np.uint8))
    refuses(
        getattr(own(root), hook),
        "8 of 48 files can't be used, name all classes in classes",
        f"{images / '000.png'}, {images / '001.png'}, {labels / '002.png'}, {test / '000.png'}: each can't be decoded",
        f"{images / '003.png'} can't be decoded",
        f"{labels / '004.png'} is missing",
        f"{labels / '005.png'} is 24 x 8 pixels, but its image is 24 x 16",
        f"{labels / '006.png'} holds the id 9",
    )


def test_32_the_command_ends_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data" / "mine", sizes=[(16, 24)] * 12)
    save(root / "labels" / "train" / "005.png", np.full((16, 24), 9, np.uint8))
    maps = {"name": "segmentation_folder", "folder": "mine", "classes": ["a", "b", "c"], "ignore": 7}
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(MAPS), "dataset": maps, "model": {"name": "drn_small", "width": 4}})
    )
    given = [str(tmp_path / "c.yaml"), f"where.data={tmp_path / 'data'}", f"where.output={tmp_path / 'out'}"]
    assert main(given) == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "005.png holds the id 9; allowed: 0..2, 7 (7 is ignored)" in error


def test_32_files_are_read_in_parallel() -> None:
    """Each of four waits until all have begun."""
    together = threading.Barrier(4)
    assert [*remembered.in_threads(lambda item: (together.wait(10), item)[1], range(4))] == [0, 1, 2, 3]


def test_32_all_images_of_other_sizes_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24), (16, 32), (16, 24), (8, 24)])
    refuses(
        own(root).info,
        "2 of 16 files can't be used",
        "001.png is 32 x 16",
        "003.png is 24 x 8",
        "used, set size: [height, width], because images of the pool must have",
    )
    (root / "images" / "train" / "000.png").write_bytes(b"x")
    (root / "labels" / "test" / "000.png").unlink()
    words = "000.png can't be decoded", "000.png is missing", "003.png is 24 x 8 pixels, but 001.png is 32 x 16"
    refuses(own(root).info, "4 of 16 files can't be used, set size: [height, width], because", *words)


@pytest.mark.parametrize("lists", [False, True])
def test_34_a_split_of_another_name_is_hinted_at(lists: bool, tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    if lists:
        for split in ("train", "val"):
            (root / f"{split}_list.txt").write_text("000\n")
        given, hint = {"lists": "{split}_list.txt"}, "there is no file "
    else:
        (root / "images" / "test").rename(root / "images" / "val")
        given, hint = {}, "there is no folder "
    refuses(own(root, **given).info, hint, "; there is val: set test: [val]")


def test_32_a_bad_image_of_a_streamed_pool_is_found_before_the_start(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 6)
    broken = [root / "images" / "train" / "004.png", root / "images" / "train" / "005.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-200])
    own(root).info()
    refuses(own(root).load, "2 of 24 files can't be used", "004.png, ", "005.png: each can't be decoded")
    dataset = own(root, skip_unreadable=True)
    assert dataset.info().num_train == 4 == len(whole(dataset.load().train_labels))
    assert dataset.info().notes[0].startswith("left out as unreadable: 2 images: ")


def test_32_nothing_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 12)
    given = {"mean": [0.5] * 3, "std": [0.5] * 3}
    first = own(root, **given).load().fingerprint
    monkeypatch.setattr(remembered, "_entries", {})  # another process
    read: list[Path] = []
    for name in ("ids", "rgb", "size"):
        monkeypatch.setattr(pixels, name, spied(getattr(pixels, name), read))
    assert own(root, **given).load().fingerprint == first and not read
    os.utime(root / "labels" / "train" / "003.png")
    own(root, **given).load()
    assert {path.name for path in read} == {"003.png"}


def spied(function: Any, seen: list[Path]) -> Any:
    def spy(path: Path, *arguments: Any, **keys: Any) -> Any:
        seen.append(path)
        return function(path, *arguments, **keys)

    return spy


# ------------------------------------------------------------------------------ 34, 35, 38: layouts of label maps


@pytest.mark.parametrize("suffix", ["_mask.png", "_L.png", ".bmp", "_seg.tif"])
def test_34_label_suffix(tmp_path: Path, suffix: str) -> None:
    root = folder(tmp_path / "mine")
    before = whole(own(root).load().train_labels)
    for path in (root / "labels").rglob("*.png"):
        Image.open(path).save(path.with_name(path.stem + suffix))
        path.unlink()
    if suffix.endswith(".png"):
        refuses(own(root).info, "train/000.png has no label map 000.png", f"000{suffix}: set label_suffix: {suffix}")
    else:
        refuses(
            own(root).info,
            "4 of 8 files can't be used: ",
            "labels/train/000.png, ",
            "001.png: each is missing: it must hold the",
        )
    assert (whole(own(root, label_suffix=suffix).load().train_labels) == before).all()


def test_34_masks_next_to_their_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    for path in (root / "labels").rglob("*.png"):
        path.rename(root / "images" / path.parent.name / f"{path.stem}_mask.png")
    dataset = own(root, labels="images/{split}", label_suffix="_mask.png")
    assert dataset.info().notes == ()
    assert dataset.load().fingerprint == before


def test_34_list_files_of_pascal_voc(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 5, suffix=".jpg")
    before = own(root).load().fingerprint
    (root / "JPEGImages").mkdir()
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split in ("train", "test"):
        names = []
        for path in sorted((root / "images" / split).iterdir()):
            path.rename(root / "JPEGImages" / f"{split}_{path.name}")
            (root / "labels" / split / f"{path.stem}.png").rename(
                root / "SegmentationClass" / f"{split}_{path.stem}.png"
            )
            names.append(f"{split}_{path.stem}")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    voc = {
        "images": "JPEGImages",
        "labels": "SegmentationClass",
        "lists": "ImageSets/Segmentation/{split}.txt",
    }
    dataset = own(root, **voc)
    assert dataset.load().fingerprint == before
    assert dataset.info().notes == tuple(f"{s}.txt: 5 of the 10 images in JPEGImages/" for s in ("train", "test"))
    listed = root / "ImageSets" / "Segmentation" / "train.txt"
    Image.open(root / "JPEGImages" / "train_002.jpg").save(root / "JPEGImages" / "1.jpg")  # Python has one "1" only
    for text, problem in (
        ("train_000\nnone\nnever.jpg\n", "names images that are not there: 'none', 'never.jpg': each is not in"),
        ("train_000\n\ntrain_000\n", "names 'train_000' twice"),
        ("train_000\ntrain_000.jpg\n", "names 'train_000.jpg' twice, before as 'train_000'"),
        (
            "1\n1\ntrain_000\ntrain_001\ntrain_001\ntrain_000",
            "names '1' twice; names 'train_001' twice; names 'train_000",
        ),
        ("\n", "train.txt is empty"),
    ):
        listed.write_text(text)
        refuses(own(root, **voc).info, problem)
    other_list = listed.with_name("test.txt")
    kept = other_list.read_text()
    listed.write_text("none\n")
    other_list.write_text("never\n")
    refuses(own(root, **voc).info, "train.txt names images", "'none' is not in", "test.txt names", "'never' is not in")
    other_list.write_text(kept)
    listed.write_text("train_000\ntrain_001\n")
    (listed.parent / "val.txt").write_text("train_001.jpg\n")
    refuses(
        own(root, **voc, train=["train", "val"]).info,
        f"in more than one of the splits train, val: {root / 'JPEGImages' / 'train_001.jpg'}",
    )
    other = root / "JPEGImages" / "train_001.png"
    Image.open(other.with_suffix(".jpg")).save(other)
    refuses(own(root, **voc).info, "names 'train_001', which is train_001.jpg or train_001.png: add the suffix")
    listed.write_text("train_000\ntrain_001.png\n")
    assert own(root, **voc).load().names == ("JPEGImages/train_000.jpg", "JPEGImages/train_001.png")
    listed.write_bytes(b"\xff\xfe\x00")
    refuses(own(root, **voc).info, "train.txt can't be read")
    listed.unlink()
    refuses(own(root, **voc).info, "train.txt: it must name one image a line")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lists": "train.txt"}, "dataset.lists: must contain {split}, which stands for the name of a split"),
        ({"images": "JPEGImages"}, "dataset.images: must contain {split}, unless lists says which images a split has"),
        (
            {"label_suffix": ".jpg"},
            "dataset.label_suffix: must end in .png, .bmp, .gif, .tif, .tiff or .pgm, got '.jpg'",
        ),
        ({"size": [64, 90]}, "dataset.size: must be two multiples of 8, got [64, 90]"),
        ({"size": [64]}, "dataset.size: must be at least 2 long"),
    ],
)
def test_34_mistakes_in_the_layout(tmp_path: Path, settings: dict[str, Any], problem: str, capsys: Any) -> None:
    values = {"name": "segmentation_folder", "folder": "mine", "classes": ["a", "b"]} | settings
    path = Path(config(tmp_path / "mine"))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"dataset": values}))
    assert main([str(path), "--plan"]) == 2
    assert problem in capsys.readouterr().err


def test_34_label_maps_without_an_image_are_noted(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    shutil.copy(root / "labels" / "train" / "000.png", root / "labels" / "train" / "more.png")
    (root / "labels" / "train" / "000.json").touch()
    (root / "images" / "train" / "000.xml").touch()
    assert own(root).info().notes == (
        "images/train: 2 images; left out: 1 file (1 .xml)",
        "labels/train: left out: 2 files (1 .json, 1 without an image)",
    )


def test_34_sub_folders_of_label_maps(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    for part in ("images", "labels"):
        (root / part / "train" / "city").mkdir()
        (root / part / "train" / "001.png").rename(root / part / "train" / "city" / "001.png")
    data = own(root).load()
    assert data.fingerprint == before and data.names == ("images/train/000.png", "images/train/city/001.png")


def test_34_two_images_with_one_label_map_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    Image.open(root / "images" / "train" / "001.png").save(root / "images" / "train" / "001.tif")
    refuses(own(root).info, "train/001.png and 001.tif have the same label map", "remove one of the images")


def test_34_folders_elsewhere(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    (root / "images").rename(tmp_path / "pictures")
    data = own(root, images=f"{tmp_path}/pictures/{{split}}").load()
    assert data.fingerprint == before and data.names[0] == f"{tmp_path}/pictures/train/000.png"
    (base / "train").rename(tmp_path / "training")
    assert images(base, train=["../training"]).load().names[0] == "../training/cat/0000.png"
    assert images(base, train=[f"{tmp_path}/training"]).load().names[0] == f"{tmp_path}/training/cat/0000.png"
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("000\n")
    data = own(root, images="~/pictures/{split}", labels="~/mine/labels/{split}", lists="~/{split}.txt").load()
    assert data.names == (f"{tmp_path}/pictures/train/000.png",)
    refuses(
        own(root, images="~/pictures/{split}", train=["trian"]).info, f"there is no folder {tmp_path}/pictures/trian"
    )
    assert images(base, train=["~/training"]).load().names[0] == f"{tmp_path}/training/cat/0000.png"


def test_35_label_suffixes_in_any_case(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    for path in list((root / "labels").rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    assert own(root).load().fingerprint == before


@pytest.mark.long
def test_38_a_pool_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "mine", sizes=[(32, 48), (64, 32), (40, 40), (48, 64)])
    refuses(own(root).info, "used, set size: [height, width], because images of the pool")
    dataset = own(root, size=[32, 40])
    assert dataset.info().size == (32, 40)
    data = dataset.load()
    assert data.train_images.shape == (4, 32, 40, 3) and data.train_labels.shape == (4, 32, 40)
    assert data.test_images.shape == (4, 64, 64, 3) and data.test_labels.shape == (4, 64, 64), "at their own size"
    picture, ids = (Image.open(root / part / "train" / "000.png") for part in ("images", "labels"))
    middle = slice(4, 44)
    assert (whole(data.train_images)[0] == np.asarray(picture)[:, middle]).all(), "cropped to its centre"
    values = np.asarray(ids)[:, middle]
    assert (whole(data.train_labels)[0] == np.where(values == 7, 255, values)).all(), "and its map likewise"
    assert data.fingerprint != own(root, size=[40, 40]).load().fingerprint
    path = Path(config(root))
    maps = {"name": "segmentation_folder", "folder": "mine", "classes": ["a", "b", "c"], "ignore": 7, "size": [32, 40]}
    values = yaml.safe_load(path.read_text()) | {"dataset": maps, "model": {"name": "drn_small", "width": 4}}
    values["protocol"] = {"initial": 2, "budget": 1, "cycles": 2, "start": "warm"}
    path.write_text(yaml.safe_dump(values))
    assert main([str(path)]) == 0, "a whole run, with test images of other sizes"
    table = harness.load(root.parent / "out")
    assert table.selected_files.map(len).tolist() == [1, 0, 1, 0]
    assert table.selected_files[0][0] == f"images/train/{table.selected[0][0]:03}.png"


# ------------------------------------------------------------------------------------------------ 41: where CIFAR is


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("where", ["the folder itself", "the folder itself, from inside", "in a folder of its name"])
def test_41_cifar_is_found_where_users_put_it(
    tmp_path: Path, kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = cifar.KINDS[kind]
    official(tmp_path / kind, monkeypatch, kind)
    folder = tmp_path / kind / about.folder
    root = tmp_path if where == "in a folder of its name" else folder
    if where.endswith("inside"):
        monkeypatch.chdir(folder)
        root = Path()
    dataset = make(kind, root, download=True)
    assert dataset.info().source.startswith("official archive")
    dataset.fetch()
    assert dataset.load().fingerprint == make(kind, tmp_path / kind).load().fingerprint


@pytest.mark.parametrize("where", [".", "cifar10"])
def test_41_a_generated_archive_is_found(tmp_path: Path, where: str) -> None:
    archive(tmp_path / where)
    assert make("cifar10", tmp_path).load().fingerprint == make("cifar10", tmp_path / where).load().fingerprint


def test_41_a_renamed_folder_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "mine")
    for download in (False, True):
        refuses(
            make("cifar10", tmp_path / "mine", download=download).info,
            "mine holds the batches of CIFAR-10, but is not called cifar-10-batches-py: rename it",
        )


@pytest.mark.parametrize(("file", "version"), [("data_batch_1.bin", "binary"), ("data_batch_1.mat", "Matlab")])
def test_41_another_version_is_recognised(tmp_path: Path, file: str, version: str) -> None:
    (tmp_path / "cifar-10-other").mkdir()
    (tmp_path / "cifar-10-other" / file).touch()
    for root in (tmp_path, tmp_path / "cifar-10-other"):
        refuses(
            make("cifar10", root).info, f"the {version} version, which lies there, is not read", "get cifar-10-python"
        )


def test_cifar_s_tree_names_all_bad_files_of_both_splits(tmp_path: Path) -> None:
    write_tree(root := tmp_path / "cifar10", cifar.CIFAR10.classes)
    undecoded = [root / "train" / "cat" / "0000.png", root / "test" / "dog" / "0000.png"]
    break_some(undecoded)
    save(root / "test" / "frog" / "0000.png", np.zeros((32, 40, 3), np.uint8))
    for hook in ("load", "examine"):
        refuses(
            getattr(make("cifar10", tmp_path), hook),
            "3 of ",
            f"{undecoded[0]}, {undecoded[1]}: each can't be decoded",
            "frog/0000.png is 40 x 32 pixels, but must be 32 x 32",
        )


def test_cifar_s_tree_accounts_for_its_files(tmp_path: Path) -> None:
    write_tree(tmp_path / "cifar10", cifar.CIFAR10.classes)
    (tmp_path / "cifar10" / "train" / "frog" / "x.tif").touch()
    dataset = make("cifar10", tmp_path)
    assert dataset.info().notes == ("train/: 30 images; left out: 1 file (1 .tif)",)
    assert dataset.load().names[0] == "train/airplane/0000.png"
    assert dataset.examine()[0] == "formats and modes: PNG RGB (50)"


# ------------------------------------------------------------------------- 58: a fingerprint that is cheap and true


def test_58_a_fingerprint_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = import_module("harness.data.files")
    root = folder(tmp_path / "mine", sizes=[(16, 24)] * 6)
    before = own(root).load().fingerprint
    monkeypatch.setattr(remembered, "_entries", {})  # another process
    read: list[Path] = []
    monkeypatch.setattr(files, "_sha256", spied(files._sha256, read))
    assert own(root).load().fingerprint == before and not read
    changed = root / "images" / "train" / "002.png"
    times = changed.stat()
    shutil.copy(root / "images" / "train" / "003.png", tmp_path / "other.png")
    content = (tmp_path / "other.png").read_bytes()
    changed.write_bytes(content[: times.st_size].ljust(times.st_size, b"\0"))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time of content as before
    assert own(root).load().fingerprint != before
    assert read == [changed]


def test_58_a_file_that_may_change_within_its_time_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 60)
    file = tmp_path / "a"
    file.write_text("x")
    assert remembered.known([file, file], "text", Path.read_text) == ["x", "x"]
    assert not (tmp_path / "cache").exists()


def test_58_a_file_whose_time_is_in_the_future_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    os.utime(file, (2**33, 2**33))
    assert remembered.known([file], "text", Path.read_text) == ["x"]
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize("changed", ["Pillow", "code"])
def test_58_what_other_code_found_out_does_not_count(
    tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "mine")
    sizes: list[Path] = []
    hashes: list[Path] = []
    monkeypatch.setattr(pixels, "size", spied(pixels.size, sizes))
    files = import_module("harness.data.files")
    monkeypatch.setattr(files, "_sha256", spied(files._sha256, hashes))
    before = own(root).load().fingerprint
    count = len(sizes)
    assert count and len(hashes) == count and own(root).load().fingerprint == before
    assert (len(sizes), len(hashes)) == (count, count)
    if changed == "Pillow":
        monkeypatch.setattr(PIL, "__version__", "0.0.1")
    else:
        monkeypatch.setattr(pixels.code, "of_file", lambda file: "0" * 12)
    pixels.reader.cache_clear()
    assert own(root).load().fingerprint == before
    assert (len(sizes), len(hashes)) == (2 * count, count), "bytes are bytes, whatever reads images"
    pixels.reader.cache_clear()


@pytest.mark.parametrize("state", ["not writable", "no home", "damaged", "of another shape"])
def test_58_without_a_memory_the_run_goes_on(tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    monkeypatch.setattr(remembered, "_entries", {})
    if state == "not writable":
        (tmp_path / "file").touch()
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    elif state == "no home":
        monkeypatch.delenv("HARNESS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "expanduser", _no_home)
    else:
        for path in (tmp_path / "cache").iterdir():
            path.write_text('"000.png"\t3\n"001.png"\t{"stamp": 1}\n' if state == "of another shape" else "{")
    data = make("segmentation_folder", root, folder=".", classes=["grass", "wall", "cat"], ignore=7)
    monkeypatch.setattr(type(data), "_folder", root)
    assert data.load().fingerprint == before


def _no_home(self: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_58_memory_of_two_processes_is_joined(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_text(file.name)
    remembered.known(files[:1], "text", Path.read_text)
    remembered._entries.clear()
    remembered._entries[str(tmp_path)] = {}  # read before the other wrote
    remembered.known(files[1:], "text", Path.read_text)
    remembered._entries.clear()

    def fails(path: Path) -> str:
        raise AssertionError(path)

    assert remembered.known(files, "text", fails) == ["a", "b"]


def test_58_entries_of_a_large_folder_are_read_once_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "TOGETHER", 7)
    files = [tmp_path / f"{number:03}" for number in range(60)]
    for file in files:
        file.write_text(file.name)
    names = [file.name for file in files]
    remembered.known(files, "text", Path.read_text)
    lines = list[bytes]()

    class Counted(io.BytesIO):
        def __next__(self) -> bytes:
            lines.append(super().__next__())
            return lines[-1]

    monkeypatch.setattr(
        remembered, "no_pipe", lambda path: SimpleNamespace(open=lambda mode: Counted(path.read_bytes()))
    )

    def asked(order: list[Path]) -> list[str]:
        lines.clear()
        found = [remembered._lines(str(tmp_path), [f.name for f in order[at : at + 7]]) for at in range(0, 60, 7)]
        return [each["text"] for some in found for each in some.values()]

    for _ in range(2):  # the second time it goes on from the end
        assert asked(files) == names and len(lines) == 60
    backwards = files[::-1]
    assert sorted(asked(backwards)) == names, "in another order more is read, and the same is found"
    assert remembered._lines(str(tmp_path), ["absent"]) == {}
    remembered._file(str(tmp_path)).write_bytes(b"".join(lines[:1]))
    assert len(remembered._lines(str(tmp_path), names)) == 1, "a file that has become shorter"


# --------------------------------------------------------------------------------------------- 87: names in records


def test_87_records_name_the_selected_files(base: Path) -> None:
    assert main([config(base)]) == 0
    names, table = images(base).load().names, harness.load(base.parent / "out")
    assert table.selected.map(len).tolist() == [2, 0, 2, 0]
    for selected, files in zip(table.selected, table.selected_files, strict=True):
        assert files == [names[i] for i in selected]


def test_87_data_without_files_has_no_names(tmp_path: Path) -> None:
    assert make("digits", tmp_path, limit=20).load().names == ()
    with pytest.raises(ValueError, match="names must be one for each training image, or none; got 1"):
        LoadedData(
            *(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])) * 2, ("a", "b"), (0.5,) * 3, (0.2,) * 3, ("x",)
        )


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    data = make("digits", tmp_path, limit=20).load()
    with pytest.raises(ValueError, match="classes must differ; '3' occurs 2 times"):
        replace(data, classes=(*data.classes[:-1], "3"))


# ------------------------------------------------------------------------------------------------- names of files


def test_names_that_are_no_text_do_no_harm(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate((b"\xff.png", b"a\nb.png", "ß 😀.png".encode())):
        target = os.path.join(os.fsencode(base / "train" / "cat"), name)  # noqa: PTH118 (bytes)
        shutil.copy(base / "train" / "cat" / f"000{number}.png", target)
    broken = base / "train" / "dog" / os.fsdecode(b"\xfe.png")
    broken.write_text("broken")
    written = config(base)
    assert main([written, "--check-data"]) == 2
    assert r"dog/\xfe.png can't be decoded" in " ".join(capsys.readouterr().out.split())
    assert main([written]) == 2
    assert r"dog/\xfe.png can't be decoded" in capsys.readouterr().err
    assert main([written, "dataset.skip_unreadable=true", "protocol.budget=11"]) == 0
    files = [file for files in harness.load(base.parent / "out").selected_files for file in files]
    assert r"train/cat/\xff.png" in files and r"train/cat/a\nb.png" in files and "train/cat/ß 😀.png" in files


@pytest.mark.parametrize("name", [".", "", "./train", "train/", "..", "/"])
def test_strange_names_of_splits(base: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([config(base, test=[name]), "--plan"]) in (0, 2)
    printed = "".join(capsys.readouterr())
    assert "CAN'T RUN" in printed or "error:" in printed
