"""ImageNet on a made tree with its layouts, names and kinds of files; the numbers are set to those of the tree."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image
from test_data_field import refuses
from test_datasets import make
from test_security import instead

from harness.data import prepared
from harness.data.dataset import DataRoot, facts
from harness.data.files import Files
from harness.errors import UserError
from harness.run import main

imagenet = import_module("harness.datasets.imagenet")

NAMES = ("n01440764", "n01443537", "n02105855", "n03995372", "n04462240", "n07753275")
SIZES = (3, 4, 5, 4, 3, 5)
TRUTH = [3, 0, 5, 1, 1, 4, 2, 0, 5, 2, 3, 4]
"""Position in NAMES of the class of each validation image."""
IDS = [2, 6, 1, 5, 3, 4]
"""The devkit's number of each class."""
LAYOUTS = ("official", "archives", "kaggle", "folders")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the official numbers to those of the made tree."""
    numbers = {"NUM_CLASSES": 6, "NUM_TRAIN": sum(SIZES), "NUM_TEST": len(TRUTH), "FEWEST": 3, "MOST": 5, "TESTED": 2}
    for name, number in numbers.items():
        monkeypatch.setattr(imagenet, name, number)
    monkeypatch.setattr(imagenet, "wnids", lambda: NAMES)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shrink(monkeypatch)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> Image.Image:
    """Return smooth colours of a size of their own, so that a JPEG is close to them."""
    draw = np.random.default_rng(seed)
    low = Image.fromarray(draw.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return low.resize((30 + seed % 5 * 4, 26 + seed % 3 * 8), Image.Resampling.BICUBIC)


def meta(path: Path, sizes: tuple[int, ...] = SIZES) -> None:
    """Write the devkit's table of classes: six of them, in another order, and an inner node of WordNet."""
    kinds = [(key, "O") for key in ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")]
    rows = [(i, name, f"a {name}", 0, n) for i, name, n in zip(IDS, NAMES, sizes, strict=True)]
    rows.append((7, "n00001740", "entity", 2, 0))
    scipy.io.savemat(path, {"synsets": np.array(sorted(rows), dtype=kinds)[:, None]})


def write(root: Path, layout: str = "official") -> Path:
    """Write the tree below root/imagenet and return that folder."""
    folder = root / "imagenet"
    below = {"archives": "ILSVRC2012_img_", "kaggle": "ILSVRC/Data/CLS-LOC/"}.get(layout, "")
    train, test = folder / f"{below}train", folder / f"{below}val"
    for number, (name, count) in enumerate(zip(NAMES, SIZES, strict=True)):
        (train / name).mkdir(parents=True)
        for image in range(count):
            picture(100 * number + image).save(train / name / f"{name}_{17 * image + 3}.JPEG", "JPEG", quality=95)
    for number, label in enumerate(TRUTH, 1):
        part = test / NAMES[label] if layout == "folders" else test
        part.mkdir(parents=True, exist_ok=True)
        picture(1000 + number).save(part / f"ILSVRC2012_val_{number:08}.JPEG", "JPEG", quality=95)
    if layout == "kaggle":
        lines = [f"ILSVRC2012_val_{n:08},{NAMES[label]} 1 2 30 40 " for n, label in enumerate(TRUTH, 1)]
        (folder / imagenet.SOLUTION).write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")
    elif layout != "folders":
        devkit = folder if layout == "archives" else folder / "ILSVRC2012_devkit_t12" / "data"
        devkit.mkdir(parents=True, exist_ok=True)
        meta(devkit / imagenet.META)
        (devkit / imagenet.TRUTH).write_text("".join(f"{IDS[label]}\n" for label in TRUTH))
    return folder


def write_two_classes(root: Path) -> None:
    """Write two classes of the official numbers and names, which no test sets to others: few files of many names."""
    folder = root / "imagenet"
    for number, (name, label) in enumerate(zip(NAMES[:2], (0, 50), strict=True)):
        train, test = folder / "train" / name, folder / "val" / name
        names = [train / f"{name}_{image}.JPEG" for image in range(732)]
        names += [test / f"ILSVRC2012_val_{label + image:08}.JPEG" for image in range(1, 51)]
        for part in (train, test):
            part.mkdir(parents=True)
            picture(10 * number + len(part.parts[-2])).save(part.parent / "one", "JPEG")
            for path in names:
                if path.parent == part:
                    os.link(part.parent / "one", path)
            (part.parent / "one").unlink()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path)


def dataset(folder: Path, **settings: Any) -> Any:
    return make("imagenet", folder.parent, **{"image_size": 16} | settings)


def sides(files: Any) -> np.ndarray:
    return np.asarray(files[np.arange(len(files))])


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_data(layout: str, tmp_path: Path) -> None:
    reference = dataset(write(tmp_path / "reference")).load()
    it = dataset(write(tmp_path / layout, layout))
    info, data = facts(it), it.load()
    assert (info.num_train, info.num_test, info.num_classes, info.size, info.from_files) == (24, 12, 6, (16, 16), True)
    assert data.classes == NAMES and data.train_images.shape == (24, 16, 16, 3)
    assert data.train_labels.tolist() == np.repeat(np.arange(6), SIZES).tolist()
    assert data.test_labels.tolist() == sorted(TRUTH)
    assert data.fingerprint == reference.fingerprint
    order = sorted(range(12), key=lambda number: (TRUTH[number], number))
    assert [path.name for path in data.test_images.paths] == [f"ILSVRC2012_val_{n + 1:08}.JPEG" for n in order]
    assert data.names[3].endswith("train/n01443537/n01443537_20.JPEG"), "as paths in the folder, sorted"
    where = {"kaggle": imagenet.SOLUTION, "folders": "its folders", "archives": imagenet.TRUTH}
    assert info.source.endswith(
        f"labels of the test set from {where.get(layout, f'{imagenet.DEVKIT[0]}/{imagenet.TRUTH}')}"
    )


def test_images_cover_the_square_and_are_cut_to_its_centre(tree: Path) -> None:
    data = dataset(tree, image_size=20).load()
    for row, path in enumerate(data.train_images.paths[:6]):
        with Image.open(path) as image:
            scale = 20 / min(image.size)
            middle = [20 / scale, 20 / scale]
            left, top = ((side - part) / 2 for side, part in zip(image.size, middle, strict=True))
            expected = image.resize((20, 20), Image.Resampling.BILINEAR, (left, top, left + middle[0], top + middle[1]))
        assert np.abs(sides(data.train_images)[row].astype(int) - np.asarray(expected)).max() <= 2


def test_it_is_never_taken_for_checked_by_checksums(tree: Path) -> None:
    info = facts(dataset(tree))
    assert not info.official
    assert info.notes == (imagenet.UNCHECKED,)


# ------------------------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("chosen", [2, ["n01443537", "n01440764"]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_classes_need_only_their_own_files(layout: str, chosen: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, layout)
    other = next(folder.rglob("*train/n03995372"))
    shutil.rmtree(other)
    data = dataset(folder, classes=chosen, top5=False).load()
    assert data.classes == NAMES[:2] and data.train_labels.tolist() == [0] * 3 + [1] * 4
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert facts(dataset(folder, classes=chosen, top5=False)).num_train == 7


def test_limits_are_class_balanced(tree: Path) -> None:
    info, data = facts(dataset(tree, limit=9, test_limit=6)), dataset(tree, limit=9, test_limit=6).load()
    assert (info.num_train, info.num_test) == (9, 6)
    assert np.bincount(data.train_labels).tolist() == [2, 2, 2, 1, 1, 1] and data.test_labels.tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (1, "must be 2 to 6 classes, got 1"),
        (7, "must be 2 to 6 classes, got 7"),
        (True, "must be a number of classes or a list of them, got True"),
        ("n01440764", "must be a number of classes or a list of them, got 'n01440764'"),
        ([7, "n01440764"], "7 is no class of ImageNet; allowed: its WordNet ids: n01440764, ..."),
        (["n01440764"], "must be 2 to 6 classes, got 1"),
        (["n01440764", "tench"], "'tench' is no class of ImageNet; allowed: its WordNet ids: n01440764, ..."),
        (["n01440764", "n01440764"], "'n01440764' occurs twice"),
    ],
)
def test_wrong_classes(classes: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        dataset(tmp_path, classes=classes)


def test_the_order_of_chosen_classes_does_not_matter(tmp_path: Path) -> None:
    one, other = (dataset(tmp_path, classes=[*names]).settings for names in (NAMES[:2], NAMES[1::-1]))
    assert one == other


# ---------------------------------------------------------------------------------------------- missing and extra files


def test_without_a_folder_it_says_what_to_get(tmp_path: Path) -> None:
    message = refuses(
        dataset(tmp_path / "imagenet").info, f"there is no folder {tmp_path / 'imagenet'}", "registration"
    )
    for archive in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert archive in message


def gone(*parts: str) -> Callable[[Path], Any]:
    def remove(folder: Path) -> None:
        path = folder.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def packed(folder: Path) -> None:
    for name in NAMES:
        shutil.rmtree(folder / "train" / name)
        (folder / "train" / f"{name}.tar").touch()


def renamed(folder: Path) -> None:
    for path in [*(folder / "train" / NAMES[0]).iterdir()]:
        path.rename(path.with_suffix(".jpg"))


def one_more(folder: Path) -> None:
    meta(folder / imagenet.DEVKIT[0] / imagenet.META, (4, *SIZES[1:]))


PROBLEMS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "train": ("official", gone("train"), "has no folder train/: get ILSVRC2012_img_train.tar"),
    "val": ("official", gone("val"), "has no folder val/: get ILSVRC2012_img_val.tar"),
    "class": ("official", gone("train", NAMES[1]), "train is not ImageNet's: 1 of 6 classes is missing: n01443537;"),
    "image": (
        "official",
        gone("train", NAMES[1], "n01443537_20.JPEG"),
        "train is not ImageNet's: 1 of 6 classes is of another size: n01443537 has 3, not 4; unpack",
    ),
    "image without devkit": (
        "folders",
        gone("train", NAMES[0], "n01440764_20.JPEG"),
        "1 of 6 classes is of another size: n01440764 has 2, not 3 to 5; unpack ILSVRC2012_img_train.tar there again",
    ),
    "image in the total": (
        "folders",
        gone("train", NAMES[1], "n01443537_20.JPEG"),
        "train is not ImageNet's: 23 images, not 24; unpack",
    ),
    "packed": (
        "official",
        packed,
        "6 of 6 classes are missing: n01440764, n01443537, n02105855, n03995372, n04462240 and 1 more; what is there "
        "is not read: 6 in no folder of a class; unpack ILSVRC2012_img_train.tar there again, and each of the 6 n*.tar "
        "in it into a folder of its name",
    ),
    "renamed": (
        "official",
        renamed,
        "1 of 6 classes is of another size: n01440764 has 0, not 3; what is there is not read: 3 .jpg; unpack",
    ),
    "test image": (
        "official",
        gone("val", "ILSVRC2012_val_00000004.JPEG"),
        "val is not ImageNet's: 1 of 12 images is missing: ILSVRC2012_val_00000004.JPEG; unpack ILSVRC2012_img_val.tar",
    ),
    "test image of a folder": (
        "folders",
        gone("val", NAMES[3], "ILSVRC2012_val_00000001.JPEG"),
        "val is not ImageNet's: 1 of 6 classes is without 2 images: n03995372 has 1; unpack ILSVRC2012_img_val.tar",
    ),
    "test class": (
        "folders",
        gone("val", NAMES[3]),
        "1 of 6 classes is without 2 images: n03995372 is missing; unpack",
    ),
    "devkit": (
        "official",
        gone("ILSVRC2012_devkit_t12"),
        "has no labels of its validation images: unpack ILSVRC2012_devkit_t12.tar.gz there, or put Kaggle's LOC_val_",
    ),
    "meta": (
        "official",
        gone(imagenet.DEVKIT[0], imagenet.META),
        "there is no meta.mat beside it: unpack ILSVRC2012_dev",
    ),
    "numbers of the devkit": ("official", one_more, "of another size: n01440764 has 3, not 4; unpack"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_missing_is_one_sentence(problem: str, tmp_path: Path) -> None:
    layout, change, words = PROBLEMS[problem]
    folder = write(tmp_path, layout)
    change(folder)
    for call in (dataset(folder).info, dataset(folder).load):
        refuses(call, words)


def test_several_problems_are_said_together(tree: Path) -> None:
    gone("train", NAMES[1])(tree)
    gone("val", "ILSVRC2012_val_00000004.JPEG")(tree)
    refuses(dataset(tree).info, "n01443537", "ILSVRC2012_val_00000004.JPEG")


def test_what_is_no_image_of_imagenet_is_noted(tree: Path) -> None:
    (tree / "train" / NAMES[0] / "Thumbs.db").touch()
    (tree / "train" / NAMES[0] / "list.txt").touch()
    shutil.copy(tree / "train" / NAMES[0] / "n01440764_3.JPEG", tree / "train" / NAMES[0] / "a copy.JPEG")
    shutil.copytree(tree / "train" / NAMES[0], tree / "train" / "n01440764_backup")
    (tree / "val" / "ILSVRC2012_val_00000099.JPEG").touch()
    (tree / "val" / "valprep.sh").touch()
    info = facts(dataset(tree))
    assert info.num_train == 24 and info.num_test == 12
    train, test, _ = info.notes
    assert train == "train/: 24 images; left out: 2 files (1 .txt, 1 of another name); not read: n01440764_backup/"
    assert test == "val/: 12 images; left out: 2 files (1 .sh, 1 of no number)"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (imagenet.META, b"no matlab", "meta.mat can't be read as the devkit's meta.mat ("),
        (imagenet.META, None, "meta.mat does not hold the 6 classes of ILSVRC2012"),
        (imagenet.TRUTH, b"1\n2\n", "does not give each of the 6 classes 2 of 12 images"),
        (imagenet.TRUTH, b"1\n" * 12, "does not give each of the 6 classes 2 of 12 images"),
        (imagenet.TRUTH, b"77\n" * 12, "can't be read as a list of numbers of classes (77)"),
        (imagenet.TRUTH, b"\xff\xfe", "can't be read as a list of numbers of classes ("),
    ],
)
def test_a_damaged_devkit_is_one_sentence(file: str, content: bytes | None, words: str, tree: Path) -> None:
    path = tree / imagenet.DEVKIT[0] / file
    if content is None:
        rows = np.array([(1, "n1", 0, 2), (2, "n2", 0, 3)], dtype=[(k, "O") for k in MATLAB])
        scipy.io.savemat(path, {"synsets": rows[:, None]})
    else:
        path.write_bytes(content)
    refuses(dataset(tree).info, words)


MATLAB = ("ILSVRC2012_ID", "WNID", "num_children", "num_train_images")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "ImageId,PredictionString\nILSVRC2012_val_00000001,\n"])
def test_a_damaged_table_of_labels_is_one_sentence(content: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "kaggle")
    (folder / imagenet.SOLUTION).write_text(content)
    refuses(dataset(folder).info, str(folder / imagenet.SOLUTION), "get it again")


# ------------------------------------------------------------------------------------------------------ kinds of images


def test_the_kinds_of_images_of_the_real_set_are_read(tree: Path) -> None:
    """It holds CMYK and grey JPEGs, and a PNG whose name ends in JPEG."""
    paths = sorted((tree / "train" / NAMES[1]).iterdir())
    original = picture(7)
    wide = original.resize((32, 24))
    wide.convert("CMYK").save(paths[0], "JPEG", quality=95)
    wide.save(paths[1], "PNG")
    wide.convert("L").save(paths[2], "JPEG", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    wide.rotate(90, expand=True).save(paths[3], "JPEG", quality=95, exif=turned)
    data = dataset(tree, image_size=24).load()
    rows = sides(data.train_images)[[data.names.index(str(path.relative_to(tree))) for path in paths]].astype(int)
    expected = np.asarray(wide.crop((4, 0, 28, 24))).astype(int)
    assert np.abs(rows[0] - expected).mean() < 8 and (rows[1] == expected).all()
    assert (rows[2] == rows[2][..., :1]).all() and np.abs(rows[3] - expected).mean() < 4, "turned as EXIF says"
    found = " ".join(dataset(tree).examine())
    assert "JPEG RGB" in found and "JPEG CMYK (1)" in found and "PNG RGB (1)" in found and "JPEG L (1)" in found


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("kind", [f"**/{imagenet.META}", f"**/{imagenet.TRUTH}", "train/*/*", "val/*"])
def test_a_pipe_a_device_or_a_loop_is_a_sentence(kind: str, tree: Path) -> None:
    for _ in instead(next(tree.glob(kind))):
        refuses(lambda: dataset(tree).load().fingerprint, str(tree))
    assert dataset(tree).load().fingerprint


def test_a_broken_image_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tree / "train" / NAMES[2] / "n02105855_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    it = dataset(tree)
    facts(it)  # numbers and names are right
    refuses(it.examine, str(broken), "can't be decoded")
    refuses(lambda: sides(it.load().train_images), str(broken))


def test_squares_are_kept_where_there_is_a_place_and_all_bad_files_are_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("harness.data.remembered"), "SETTLED_SECONDS", 0)
    expected, it = sides(dataset(tree).load().train_images), dataset(tree)
    place = prepared.Place(tree.parent / "kept", True)
    it.data_root = DataRoot(tree.parent, False, place)
    data = prepared.applied(it.load(), place)
    assert isinstance(data.train_images, Files) and data.train_images.prepared is not None
    assert (sides(data.train_images) == expected).all() and data.fingerprint == dataset(tree).load().fingerprint
    assert facts(it).resized == (24 + 12) * 16 * 16 * 3
    it.data_root = DataRoot(tree.parent, False, prepared.Place(tree.parent / "other", False))
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "BY_ITSELF", 1)
        patch.setattr(Files, "decode", lambda *_: pytest.fail("decoded for nothing"))
        assert [files.prepared for files in prepared.applied(it.load(), it.data_root.prepared).decoded] == [None, None]
    assert capsys.readouterr().out.count("note: ") == 1
    broken = [tree / "train" / NAMES[2] / "n02105855_3.JPEG", tree / "val" / "ILSVRC2012_val_00000003.JPEG"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    it.data_root = DataRoot(tree.parent, False, place)
    refuses(it.load, "2 of 36 files can't be used, unpack ILSVRC2012_img_train.tar, or", *map(str, broken))


# ---------------------------------------------------------------------------------------------------------- a whole run


def config(folder: Path, **keys: Any) -> Path:
    values = {
        "dataset": {"name": "imagenet", "image_size": 20},
        "model": {"name": "resnet_small", "width": 4},
        "recipe": {
            "epochs": 2,
            "batch_size": 4,
            "warmup_epochs": 1,
            "random_resized_crop": {},
            "crop_size": [16, 16],
            "center_crop": [16, 16],
        },
        "protocol": {"initial": 12, "budget": 4, "cycles": 2, "start": "warm"},
        "methods": {"DAST-AL": {"acquisition": "epmcm", "training": "isda"}},
        "seeds": [0],
        "where": {"trials": "in_process", "data": str(folder.parent), "output": str(folder.parent / "out")},
    } | keys
    path = folder.parent / "imagenet.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_run_reports_top_5_accuracy(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config(tree))]) == 0
    out = tree.parent / "out"
    printed = capsys.readouterr().out
    assert "top-5 accuracy (%) on the test set by number of labelled images" in " ".join(printed.split())
    assert imagenet.UNCHECKED in " ".join(printed.split())
    page = (out / "report" / "report.html").read_text()
    assert "top-5 accuracy" in page.lower()
    assert (out / "report" / "imagenet_top5.csv").is_file() and (out / "report" / "imagenet_top5.png").is_file()
    assert not (out / "report" / "imagenet_top5_reached.csv").exists(), "methods are compared by accuracy"
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["suites"][0]["official_data"] is False


def test_five_classes_have_no_top_5_accuracy(tree: Path) -> None:
    from harness.config.load import load_config
    from harness.experiment.grid import expand

    path = str(config(tree, dataset={"name": "imagenet", "image_size": 20, "classes": 5}))
    with pytest.raises(
        UserError, match=r"dataset.*needs image labels of more than 5 classes, but imagenet has 5; set it"
    ):
        expand(load_config(path))
    expand(load_config(path, ["dataset.top5=false"]))


def test_a_plan_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path / "imagenet", optional=True)
    assert main([str(path), "--plan"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "imagenet will be SKIPPED: there is no folder" in printed and "ILSVRC2012_img_train.tar" in printed


def test_the_official_classes_are_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = imagenet.wnids()
    assert (imagenet.NUM_TRAIN, imagenet.NUM_TEST) == (1_281_167, 50_000), "as published"
    assert len({*names}) == imagenet.NUM_CLASSES == 1000 and list(names) == sorted(names)
    assert names[0] == "n01440764" and all(name[0] == "n" and len(name) == 9 for name in names)
