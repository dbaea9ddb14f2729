"""Pools of many images: their index, decoders, where they are held, and prepared images on disk."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from test_datasets import make, pictures, save, whole, write_tree
from test_segmentation_data import folder, own

import harness
from harness.data import host, jpeg, pixels, prepared, remembered, rows, shards
from harness.data.dataset import DataRoot
from harness.data.files import IGNORED, Files
from harness.data.paths import Names, Paths
from harness.data.prepared import Place
from harness.data.rows import AHEAD, Streamed, held, on_device, rows_on_device
from harness.errors import BadFile, DataMissing, UserError
from harness.experiment import holding
from harness.prepare import main as prepare
from harness.results.records import conditions, differing
from harness.run import main
from harness.settings import Where

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def remembers_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remember files that were just written, in a folder of the test."""
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(remembered, "_entries", {})
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------------------- index

NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name not in (".", "..")
    ),
    max_size=12,
)


@given(NAMES, st.data())
def test_paths_are_those_of_a_list(names: list[str], data: st.DataObject) -> None:
    root = Path("/some/folder")
    expected = [root / "class" / name for name in names]
    paths = Paths.of(expected, root)
    assert list(paths) == expected == [paths[i] for i in range(len(names))] and len(paths) == len(names)
    assert list(paths.texts()) == [*map(str, expected)]
    indices = st.lists(st.integers(-len(names), len(names) - 1), max_size=20) if names else st.just(list[int]())
    chosen = data.draw(indices)
    assert list(paths[np.array(chosen, dtype=np.int64)]) == [expected[i] for i in chosen]
    mask = np.array([len(name) % 2 == 0 for name in names], dtype=bool)
    assert list(paths[mask]) == [path for path, kept in zip(expected, mask, strict=True) if kept]
    assert list(paths[2:7]) == expected[2:7]
    assert list(Paths.joined(root, [paths, paths[:1], paths])) == expected + expected[:1] + expected
    assert list(pickle.loads(pickle.dumps(paths))) == expected
    with pytest.raises(IndexError):
        paths[len(names)]


def test_names_are_those_in_the_folder_and_printable() -> None:
    root = Path("/data/mine")
    strange = os.fsdecode(b"\xff\n.png")
    paths = Paths.of([root / "a" / "1.png", root / ".." / "b.png", Path("/elsewhere/c.png"), root / strange], root)
    assert Names(paths) == ("a/1.png", "../b.png", "/elsewhere/c.png", r"\xff\n.png")
    assert paths[3] == root / strange and Names(paths).index("../b.png") == 1 and Names(paths)[1:3][0] == "../b.png"
    assert list(paths)[2] == Path("/elsewhere/c.png") == Path([*paths.texts()][2])
    assert [*Paths.of([Path("a/b.png")]).texts()] == ["a/b.png"]


def test_many_paths_are_unpickled_without_a_copy() -> None:
    one = Paths.of([Path(f"/pool/train/n{i % 100:08}/n{i % 100:08}_{i}.JPEG") for i in range(2000)], Path("/pool"))
    many = Paths.joined(one.root, [one] * 500)
    buffers: list[Any] = []
    packed = pickle.dumps(many, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(packed, buffers=buffers)
    assert len(packed) < 1000, "all else is in the buffers, which are not copied"
    assert all(np.shares_memory(one, two) for one, two in ((many._names, again._names), (many._ends, again._ends)))
    assert len(again) == 10**6 and again[-1] == one[-1]
    assert sum(len(buffer.raw()) for buffer in buffers) < 50 * 10**6


def test_what_is_remembered_of_many_folders_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_ENTRIES", 10)
    monkeypatch.setattr(remembered, "TOGETHER", 3)
    paths = []
    for number in range(30):
        path = tmp_path / f"{number // 5}" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(number))
        paths.append(path)
    expected = [str(number) for number in range(30)]
    asked: list[Path] = []

    def read(path: Path) -> str:
        asked.append(path)
        return path.read_text()

    assert remembered.known(paths, "text", read) == expected and len(asked) == 30
    assert sum(map(len, remembered._entries.values())) <= 15
    assert remembered.known(reversed(paths), "text", read) == expected[::-1] and len(asked) == 30
    with remembered.afresh():
        for _ in range(2):
            assert remembered.known(paths, "text", read) == expected and len(asked) == 60, "found out again, once"


def test_what_is_remembered_of_a_flat_folder_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_ENTRIES", 10)
    monkeypatch.setattr(remembered, "TOGETHER", 5)
    paths, held, asked = [tmp_path / f"{number:03}\t\n" for number in range(60)], list[int](), list[Path]()
    for path in paths:
        path.write_text(path.name)

    def read(path: Path) -> str:
        held.append(sum(map(len, remembered._entries.values())))
        asked.append(path)
        return path.read_text()

    for again in range(3):
        assert remembered.known(paths, "text", read) == [path.name for path in paths] and len(asked) == 60
        assert max(held) <= 15 and sum(map(len, remembered._entries.values())) <= 15, again
    with remembered.afresh():
        for _ in range(2):
            assert remembered.known(paths, "text", read) == [path.name for path in paths] and len(asked) == 120


# ---------------------------------------------------------------------------------------------------------- decoding


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return smooth colours with some noise, so that all coefficients of a JPEG matter."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    noise = random.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (61, 47), (17, 200)])
def test_a_jpeg_has_pillow_s_pixels_exactly(
    tmp_path: Path, height: int, width: int, progressive: bool, subsampling: int
) -> None:
    path = tmp_path / "0.jpg"
    photograph(height, width).save(path, quality=83, subsampling=subsampling, progressive=progressive)
    for part in (1, 2, 4, 8):
        least = None if part == 1 else (height // part, width // part)
        fast = jpeg.decoded(path, pytest.fail, least)
        assert fast is not None and fast.shape == (-(-height // part), -(-width // part), 3)
        assert (fast == np.asarray(pixels._rgb(path, True, least))).all()
    whole = jpeg.decoded(path, pytest.fail)
    into, larger = np.zeros((height, width, 3), np.uint8), np.zeros((height + 1, width, 3), np.uint8)
    assert jpeg.decoded(path, pytest.fail, into=into) is into and (into == whole).all()
    assert jpeg.decoded(path, pytest.fail, into=larger) is not larger and not larger.any()
    assert (Files([path], (height + 1, width), whole=True)[np.array([0])][0, :height] == whole).all(), "padded"


@pytest.mark.parametrize("size", [(40, 40), (39, 80), (80, 79), (80, 80), (160, 90), (800, 320)])
def test_a_jpeg_is_decoded_as_a_part_only_if_it_is_twice_as_large(tmp_path: Path, size: tuple[int, int]) -> None:
    path, side = tmp_path / "0.jpg", 40
    photograph(*size).save(path, quality=90)
    row = Files([path], (side, side), cover=(side, side), whole=True)[np.array([0])][0]
    part = {80: 2, 90: 2, 320: 8}.get(size[1] if size[0] >= 80 else 0, 1)
    assert jpeg.part_of(size, (side, side)) == part
    expected = Image.open(path)
    if part > 1:
        expected.draft("RGB", (size[1] // part, size[0] // part))
    assert (row == np.asarray(ImageOps.fit(expected, (side, side), Image.Resampling.BILINEAR))).all()
    with_map = Files([path], (side, side), cover=(side, side))[np.array([0])][0]
    assert (with_map == np.asarray(ImageOps.fit(Image.open(path), (side, side), Image.Resampling.BILINEAR))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_decoded_as_a_part_of_its_upright_size(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(90, 160).save(tmp_path / "0.jpg", quality=90, exif=exif)
    sideways = orientation > 4
    for least in ((40, 80), (80, 40), (40, 40)):
        found = pixels.array(tmp_path / "0.jpg", True, least)
        part = jpeg.part_of((160, 90) if sideways else (90, 160), least)
        assert part == (2 if least == (40, 40) or sideways == (least == (80, 40)) else 1)
        assert found.shape[:2] == ((160 // part, 90 // part) if sideways else (90 // part, 160 // part))
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "0.jpg"))
    assert upright is not None and (pixels.array(tmp_path / "0.jpg", True) == np.asarray(upright)).all()


def test_what_is_no_ordinary_jpeg_is_left_to_pillow(tmp_path: Path) -> None:
    picture = photograph(32, 40)
    for name, image in (("grey", picture.convert("L")), ("cmyk", picture.convert("CMYK"))):
        image.save(tmp_path / f"{name}.jpg", quality=95)
    picture.save(tmp_path / "png.jpg", format="PNG")
    picture.save(good := tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:-60])
    content = good.read_bytes()
    (tmp_path / "more.jpg").write_bytes(content + b"anything")
    (tmp_path / "no_end.jpg").write_bytes(content[:-2])
    (tmp_path / "empty.jpg").touch()
    for name in ("grey", "cmyk", "png", "cut", "empty", "no_end"):
        assert jpeg.decoded(tmp_path / f"{name}.jpg", pytest.fail) is None, name
    for name in ("grey", "cmyk", "png", "more", "good"):
        with Image.open(tmp_path / f"{name}.jpg") as file:
            assert (pixels.array(tmp_path / f"{name}.jpg", True) == np.asarray(file.convert("RGB"))).all(), name
    for name, word in (("cut", "decoded"), ("empty", "decoded"), ("absent", "read")):
        with pytest.raises(DataMissing, match=rf"{name}\.jpg can't be {word}"):
            pixels.array(tmp_path / f"{name}.jpg", True)
    assert jpeg.decoded(tmp_path / "absent.jpg", pytest.fail) is None


def test_an_enormous_jpeg_is_refused_as_pillow_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(64, 64).save(tmp_path / "0.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(DataMissing, match="decompression bomb"):
        pixels.array(tmp_path / "0.jpg", True)


def test_without_simplejpeg_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.results import provenance

    photograph(16, 16).save(tmp_path / "0.jpg")
    real = provenance.version

    def absent(name: str) -> str:
        if name == "simplejpeg":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for module in (provenance, pixels):
        monkeypatch.setattr(module, "version", absent)
    for work in (
        lambda: pixels.array(tmp_path / "0.jpg", True),
        provenance.versions.__wrapped__,
        pixels.reader.__wrapped__,
    ):
        with pytest.raises(UserError, match=r"^simplejpeg, which .* is not installed here: pip install simplejpeg$"):
            work()


def test_a_record_without_the_version_of_simplejpeg_differs_in_it() -> None:
    rest = {"data_fingerprint": "a", "code": {}, "precision": "float32", "device": "cpu"}
    old, new = (conditions(versions=versions, **rest) for versions in ({}, {"simplejpeg": "1.8"}))
    assert old["simplejpeg"] == "unknown" and differing(old, new) == ["simplejpeg"]


# --------------------------------------------------------------------------------------------------- where it is held


@given(st.integers(0, 10**4), st.integers(0, 10**4), st.none() | st.integers(0, 10**4))
def test_data_is_held_where_it_fills_a_quarter_at_most(nbytes: int, device: int, host_memory: int | None) -> None:
    where = held(nbytes, device, host_memory)
    fits = {rows.ON_DEVICE: 4 * nbytes <= device, rows.IN_MEMORY: host_memory is not None and 4 * nbytes <= host_memory}
    assert where == next((place for place, it_does in fits.items() if it_does), rows.STREAMED)


def test_a_process_takes_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_memory", lambda: 8000)
    array = Files([Path("/a.png")] * 10, (10, 10))  # 3000 bytes
    assert rows._held(array.nbytes, CPU) == rows.STREAMED and rows._held(2000, CPU) == rows.ON_DEVICE
    monkeypatch.setattr(host, "sharing", 2)
    assert rows._held(2000, CPU) == rows.STREAMED


def test_a_gpu_that_is_shared_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    for share, free in ((1.0, 9000), (0.5, 4500), (0.05, 0)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index, share=share: share)
        assert rows._free_memory(gpu) == free


def tree(root: Path, count: int = 9) -> Files:
    for number, image in enumerate(pictures(count, 24)):
        save(root / f"{number}.png", image)
    return Files([root / f"{number}.png" for number in range(count)], (16, 16), cover=(16, 16), whole=True)


def test_rows_are_the_same_wherever_they_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, array = tree(tmp_path), whole(tree(tmp_path))
    ready = prepared.looked_over([files], Place(tmp_path / "prepared", True))[0][0]
    batches = torch.tensor([3, 0, 7, 7, 1, 5, 2, 6, 4]).split(4)
    for place in (rows.ON_DEVICE, rows.IN_MEMORY, rows.STREAMED):
        monkeypatch.setattr(rows, "_held", lambda nbytes, device, place=place: place)
        for source in (files, ready, array):
            found = on_device(source, CPU)
            assert isinstance(found, torch.Tensor) == (source is array or (source is files and place == rows.ON_DEVICE))
            for indices, batch in zip(batches, rows.take(found, batches), strict=True):
                assert (batch.numpy() == array[indices.numpy()]).all()
            some = rows_on_device(source, np.array([8, 1]), CPU)
            assert (some[torch.tensor([1, 0])].numpy() == array[[1, 8]]).all()
    monkeypatch.setattr(rows, "_held", lambda nbytes, device: rows.IN_MEMORY)
    kept, left = on_device(files, CPU), on_device(ready, CPU)
    assert isinstance(kept, Streamed) and isinstance(kept.files, np.ndarray), "decoded once"
    assert isinstance(left, Streamed) and left.files is ready, "prepared images are in the system's cache"


def test_a_trial_decodes_with_as_many_threads_as_it_has_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, made = tree(tmp_path), []

    class Pool(rows.ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            made.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(rows, "ThreadPoolExecutor", Pool)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert len(list(Streamed(files, CPU).ahead(torch.arange(9).split(2)))) == 5
    finally:
        torch.set_num_threads(before)
    assert made == [3], "one pool for all batches"


def test_the_plan_says_where_images_are_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = replace(
        make("digits", tmp_path).info(), num_train=1000, size=(10, 10), channels=3, from_files=True, resized=400_000
    )
    monkeypatch.setattr(host, "free_memory", lambda: 2_000_000)
    monkeypatch.setattr(host, "processors", lambda: 8)
    monkeypatch.setattr(holding, "gpu_memory", list)
    alone, many = Where(trials="in_process"), Where(cpus_per_trial=2, prepared=str(tmp_path), scoring="in_process")
    assert "streamed from prepared images" in holding.sentence(info, alone, 5), "the system's cache holds them for all"
    assert holding.sentence(info, alone.model_copy(update={"prepared": False}), 5) == (
        "training images: 300.0 kB decoded, held in host memory; they may fill 25% of what a process may take: 2.0 MB "
        "of memory"
    )
    assert holding.sentence(info, many, 3) == (
        f"training images: 300.0 kB decoded, streamed from prepared images in {tmp_path}; they may fill 25% of what a "
        "process may take, its share with 2 others: 666.7 kB of memory"
    )
    assert "with 3 others: 500.0 kB of memory" in holding.sentence(info, many, 30)
    assert "streamed from the files" in holding.sentence(info, many.model_copy(update={"prepared": False}), 30)
    assert "streamed from the files" in holding.sentence(replace(info, resized=0), many, 30), "nothing is resized"
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "BY_ITSELF", 1000)
        said = holding.sentence(info, many.model_copy(update={"prepared": True}), 30)
        assert (
            "streamed from the files; they" in said and "prepared images would take 400.0 kB, more than 1.0 kB" in said
        )
    data_workers = many.model_copy(update={"scoring": "ray_data", "shards": 1})
    assert "its share with 7 others" in holding.sentence(info, data_workers, 30), "a worker for each of four trials"
    assert "others" not in holding.sentence(info, many, 30, exclusive=True)
    monkeypatch.setattr(holding, "gpu_memory", lambda: [4_000_000] * 2)
    halves = many.model_copy(update={"gpus_per_trial": 0.5})
    said = holding.sentence(info, halves, 30)
    assert "held on the device; they " in said and "others: 2.0 MB of GPU memory, or 500.0 kB of the host's" in said
    assert "others: 4.0 MB of GPU memory" in holding.sentence(info, halves, 30, exclusive=True), "a GPU each"
    small = replace(info, num_train=8000)
    assert "streamed from prepared images" in holding.sentence(
        small, alone.model_copy(update={"prepared": str(tmp_path)}), 1
    )
    arrays = holding.sentence(replace(small, from_files=False), alone, 1)
    assert "streamed from the host's memory, where all trials share them" in arrays
    workers = halves.model_copy(update={"scoring": "auto", "shards": 3})
    assert "streamed from" in holding.sentence(info, workers, 30), "a quarter of a quarter of half a GPU"
    assert holding.sentence(replace(info, from_files=False), alone.model_copy(update={"device": "cpu"}), 5) == (
        "training images: 300.0 kB, held in memory, once for all trials"
    )


# ------------------------------------------------------------------------------------------------------------ prepared


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shard hold four images of 16 x 16."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 16 * 16 * 3 + 5)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of the rows that will be decoded."""
    decoded, decode = list[int](), Files.decode

    def spy(self: Files, index: int, row: Any) -> None:
        decoded.append(index)
        decode(self, index, row)

    monkeypatch.setattr(Files, "decode", spy)
    return decoded


@pytest.mark.usefixtures("small_shards")
def test_prepared_rows_are_those_that_decoding_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    expected = whole(files)
    decoded = spied(monkeypatch)
    ((ready,), (counts,)) = prepared.looked_over([files], place)
    assert sorted(decoded) == list(range(9)) and ready.prepared is not None and len(ready.prepared) == 3
    assert (whole(ready) == expected).all() and (ready[np.array([8, 0, -1])] == expected[[8, 0, 8]]).all()
    assert counts.tolist() == [np.bincount(expected[..., c].ravel(), minlength=256).tolist() for c in range(3)]
    assert ready.digest() == files.digest()
    assert (whole(pickle.loads(pickle.dumps(ready))) == expected).all() and len(decoded) == 9
    ((again,), (same,)) = prepared.looked_over([replace(files)], place)
    assert len(decoded) == 9 and (same == counts).all() and again.prepared == ready.prepared
    ((plain,), (same,)) = prepared.looked_over([files], None)
    assert plain.prepared is None and (same == counts).all() and len(decoded) == 18
    prepared.looked_over([files], None)
    assert len(decoded) == 18, "what was counted is remembered"
    with remembered.afresh():
        prepared.looked_over([files], None)
    assert len(decoded) == 27


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_preparation_goes_on_with_the_next_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    decode = Files.decode

    def killed(self: Files, index: int, row: Any) -> None:
        if index == 6:
            raise KeyboardInterrupt
        decode(self, index, row)

    monkeypatch.setattr(Files, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared.looked_over([files], place)
    assert sorted(path.name for path in place.folder.rglob("*") if path.is_file()) == ["00000.rows", "about.json"]
    monkeypatch.setattr(Files, "decode", decode)
    decoded = spied(monkeypatch)
    ((ready,), _) = prepared.looked_over([files], place)
    assert sorted(decoded) == [4, 5, 6, 7, 8]
    assert (whole(ready) == whole(files)).all()


@pytest.mark.usefixtures("small_shards")
def test_a_killed_preparation_goes_on_and_what_it_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    decode = Files.decode

    def killed(self: Files, index: int, row: Any) -> None:
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        decode(self, index, row)

    with monkeypatch.context() as patched:
        patched.setattr(Files, "decode", killed)
        child = multiprocessing.get_context("fork").Process(target=prepared.looked_over, args=([files], place))
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    (set_,) = place.folder.iterdir()
    left, recent = set_ / ".part-old", set_ / ".part-new"  # as of one that was killed while it wrote
    left.touch(), recent.touch()
    os.utime(left, (0, 0))
    decoded = spied(monkeypatch)
    ((ready,), _) = prepared.looked_over([files], place)
    assert sorted(decoded) == [4, 5, 6, 7, 8] and not left.exists() and recent.exists()
    assert (whole(ready) == whole(files)).all()


def test_a_tree_that_is_moved_uses_what_is_prepared_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "prepared", True)
    (tmp_path / "here").mkdir()
    ((before,), _) = prepared.looked_over([tree(tmp_path / "here")], place)
    (tmp_path / "here").rename(tmp_path / "there")
    decoded = spied(monkeypatch)
    moved = replace(before, paths=[tmp_path / "there" / f"{number}.png" for number in range(9)], prepared=None)
    ((after,), _) = prepared.looked_over([moved], place)
    assert decoded == [] and after.prepared == before.prepared


@pytest.mark.usefixtures("small_shards")
def test_rows_that_are_missing_are_decoded(tmp_path: Path) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    ((ready,), _) = prepared.looked_over([files], place)
    assert ready.prepared is not None
    assert rows._lies_in_memory(ready)
    ready.prepared.path(1).unlink()
    ready.prepared.path(2).write_bytes(b"short")
    assert (whole(ready) == whole(files)).all()
    assert ready.prepared.missing() == [1, 2] and not rows._lies_in_memory(ready)
    assert ready.prepared.counts(0) is not None and ready.prepared.counts(1) is ready.prepared.counts(2) is None


@pytest.mark.usefixtures("small_shards")
def test_two_processes_may_prepare_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    decode, inside = Files.decode, []

    def other_first(self: Files, index: int, row: Any) -> None:
        if not inside:
            inside.append(True)
            # from its start to its end, while this one, which has the same process id, is in its first shard
            prepared.looked_over([files], place)
        decode(self, index, row)

    monkeypatch.setattr(Files, "decode", other_first)
    monkeypatch.setattr(prepared, "processors", lambda: 1)
    ((ready,), _) = prepared.looked_over([files], place)
    assert (whole(ready) == whole(files)).all()
    assert not [path for path in place.folder.rglob(".part*")]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("shard", [0, 1])
def test_a_full_disk_is_a_sentence_and_the_rest_is_decoded(
    tmp_path: Path, shard: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, place, real = tree(tmp_path), Place(tmp_path / "prepared", True), Path.open

    parts: list[Path] = []

    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    def opened_full(self: Path, mode: str = "r", *arguments: Any, **keys: Any) -> Any:
        if mode == "xb":
            parts.append(self)
            if len(parts) == shard + 1:
                return Full(io.FileIO(self, "w"))
        return real(self, mode, *arguments, **keys)

    monkeypatch.setattr(Path, "open", opened_full)
    ((ready,), (counts,)) = prepared.looked_over([files], place)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"(No space left on device) after {shard} of 3 parts; the other images are" in said
    assert len(list(place.folder.rglob("*.rows"))) == shard and not list(place.folder.rglob(".part*"))
    assert (whole(ready) == whole(files)).all() and counts.sum() == whole(files).size


@pytest.mark.parametrize(
    ("named", "free", "words"),
    [
        (
            True,
            13_000,
            "would take 13.1 kB, and 13.0 kB are free, of which they may take half; set where.prepared to a",
        ),
        (False, 10**9, "would take 13.1 kB, more than 5.0 kB; set where.prepared to the folder that may hold them"),
        (True, 10**9, ""),
    ],
)
def test_prepared_images_leave_space_on_the_disk(
    tmp_path: Path, named: bool, free: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(prepared, "BY_ITSELF", 5000)
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    ((ready,), _) = prepared.looked_over([tree(tmp_path)], Place(tmp_path / "prepared", named))
    said = capsys.readouterr().out
    assert (words in said and said.startswith("note: ")) if words else not said
    assert (ready.prepared is None) == bool(words) and (tmp_path / "prepared").exists() != bool(words)


@pytest.mark.usefixtures("small_shards")
def test_room_is_asked_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    files, place, free = tree(tmp_path), Place(tmp_path / "prepared", True), [10**9]
    expected = whole(files)
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))
    ((ready,), (counts,)) = prepared.looked_over([files], place)
    assert ready.prepared is not None
    missing = ready.prepared.nbytes([2])
    ready.prepared.path(2).unlink()
    free[0] = 2 * missing - 1
    decoded = spied(monkeypatch)
    ((some,), (none,)) = prepared.looked_over([files], place, counted=False)
    assert not decoded and not none.any() and some.prepared is not None and some.prepared.missing() == [2]
    assert f"would take {missing / 1000:.1f} kB more, and " in capsys.readouterr().out
    ((some,), (same,)) = prepared.looked_over([files], place)
    assert decoded == [8] and (same == counts).all() and (whole(some) == expected).all()
    capsys.readouterr()
    free[0] = 2 * missing
    ((ready,), _) = prepared.looked_over([files], place)
    assert ready.prepared is not None and not ready.prepared.missing() and not capsys.readouterr().out


def test_the_parts_of_a_dataset_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", False)
    monkeypatch.setattr(prepared, "BY_ITSELF", 20_000)  # of 13 056 each
    decoded = spied(monkeypatch)
    found, _ = prepared.looked_over([files, replace(files, whole=False)], place, counted=False)
    assert [one.prepared for one in found] == [None, None] and not decoded, "nothing is kept, and nothing counted"
    assert capsys.readouterr().out.count("would take 26.1 kB, more than 20.0 kB") == 1
    assert prepared.looked_over([files], place)[0][0].prepared is not None


def test_a_refusal_is_said_once_and_files_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_tree(tmp_path / "mine", ["cat", "dog"], train=6, test=2, size=24)
    monkeypatch.setattr(prepared, "BY_ITSELF", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))  # nothing can be remembered
    dataset, place = make("image_folder", tmp_path, folder="mine", image_size=16), Place(tmp_path / "kept", False)
    dataset.data_root = DataRoot(tmp_path, False, place)
    decoded = spied(monkeypatch)
    data = prepared.applied(dataset.load(), place)
    assert len(decoded) == 16 and capsys.readouterr().out.count("note: ") == 1
    assert data.train_images.prepared is None


@pytest.mark.usefixtures("small_shards")
def test_a_bad_file_costs_its_own_shard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place, decode = tree(tmp_path), Place(tmp_path / "prepared", True), Files.decode

    def failing(self: Files, index: int, row: Any) -> None:
        if index == 5:
            raise BadFile(self.paths[5], "can't be decoded (Input/output error)")
        decode(self, index, row)

    monkeypatch.setattr(Files, "decode", failing)
    with pytest.raises(DataMissing, match="Input/output error"):
        prepared.looked_over([files], place)
    monkeypatch.setattr(Files, "decode", decode)
    decoded = spied(monkeypatch)
    ((ready,), _) = prepared.looked_over([files], place)
    assert sorted(decoded) == [4, 5, 6, 7] and ready.prepared is not None and not ready.prepared.missing()


@pytest.mark.usefixtures("small_shards")
def test_a_file_that_is_replaced_meanwhile_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place, decode = tree(tmp_path), Place(tmp_path / "prepared", True), Files.decode
    replaced: list[int] = []

    def later(self: Files, index: int, row: Any) -> None:
        if index == 5 and not replaced:
            replaced.append(index)
            save(tmp_path / "5.png", pictures(1, 24, seed=9)[0])
        decode(self, index, row)

    monkeypatch.setattr(Files, "decode", later)
    with pytest.raises(DataMissing, match=r"5\.png has changed since this start read it: start again when"):
        prepared.looked_over([files], place)
    assert [path.name for path in place.folder.rglob("*.rows")] == ["00000.rows"]
    with pytest.raises(DataMissing, match=r"5\.png has changed"):
        replaced.clear()
        save(tmp_path / "5.png", pictures(1, 24, seed=8)[0])
        prepared.looked_over([files], None)


def test_remove_touches_only_what_was_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, folder = tree(tmp_path), tmp_path / "kept"
    prepared.looked_over([files], Place(folder, True))
    (own,) = folder.iterdir()
    about = (own / "about.json").read_text()
    (own / "mine.txt").write_text("mine")
    for name, text in (("mine", about), ("0" * 32, "{}"), ("1" * 32, '{"rows": 1}')):
        (folder / name).mkdir()
        (folder / name / "about.json").write_text(text)
        (folder / name / "00000.rows").write_text("mine")
    assert prepare(["--remove", "all", "--folder", str(folder)]) == 0
    assert [path.name for path in own.iterdir()] == ["mine.txt"]
    assert len(list(folder.rglob("00000.rows"))) == 3 and prepared.sets(folder) == []


def test_label_maps_follow_the_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tree(tmp_path)
    monkeypatch.setattr(rows, "_held", lambda nbytes, device: rows.IN_MEMORY)
    some = rows_on_device(files, np.array([8, 1, 8]), CPU)
    assert isinstance(some, Streamed) and isinstance(some.files, np.ndarray) and len(some) == 3
    assert (some[torch.tensor([1, 2])].numpy() == whole(files)[[1, 8]]).all()


def test_only_gpus_that_are_visible_count() -> None:
    gpus = [["0", "GPU-aa", "100"], ["1", "GPU-bb", "200"], ["2", "GPU-bc", "300"]]
    for named, found in ((None, [100, 200, 300]), ("", []), ("-1", []), ("2,0", [300, 100]), ("1,7,0", [200]),
                         ("GPU-aa", [100])):  # fmt: skip
        assert holding._visible(gpus, named) == [mebibytes * 2**20 for mebibytes in found]


def test_a_place_that_can_not_be_made_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tree(tmp_path)
    (tmp_path / "file").touch()
    ((ready,), _) = prepared.looked_over([files], Place(tmp_path / "file", True))
    assert "they can't be kept there (" in capsys.readouterr().out
    assert ready.prepared is None and (whole(ready) == whole(files)).all()


def test_all_bad_files_are_named_and_nothing_is_kept(tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", ["cat", "dog"], train=6, test=2, size=24)
    broken = [tmp_path / "mine" / "train" / "cat" / "0001.png", tmp_path / "mine" / "test" / "dog" / "0000.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    dataset = make("image_folder", tmp_path, folder="mine", image_size=16)
    dataset.data_root = DataRoot(tmp_path, False, Place(tmp_path / "prepared", True))
    for _ in range(2):
        with pytest.raises(
            DataMissing, match="2 of 16 files can't be used, replace or remove them, or set skip_un"
        ) as e:
            dataset.load()
        assert all(str(path) in str(e.value) for path in broken)
    assert not list((tmp_path / "prepared").iterdir())


def test_another_size_or_another_image_is_prepared_apart(tmp_path: Path) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    looked = [replace(files), replace(files, size=(8, 8), cover=(8, 8)), replace(files, whole=False)]
    found = {prepared.looked_over([one], place)[0][0].prepared for one in looked}
    save(tmp_path / "3.png", pictures(1, 24, seed=9)[0])
    found.add(prepared.looked_over([replace(files)], place)[0][0].prepared)
    assert len(found) == 4 == len(prepared.sets(place.folder))
    assert {about["height"] for _, about, _, _ in prepared.sets(place.folder)} == {16, 8}


def test_sets_of_another_decoder_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, place = tree(tmp_path), Place(tmp_path / "prepared", True)
    prepared.looked_over([files], place)
    assert prepare(["--list", "--folder", str(place.folder)]) == 0
    assert "not used" not in capsys.readouterr().out
    monkeypatch.setattr(prepared, "_decoder", lambda: "another")
    prepared.looked_over([replace(files)], place)
    ((_, about, _, _),) = [one for one in prepared.sets(place.folder) if not prepared.usable(one[1])]
    del about["decoder"]  # as an earlier version wrote it
    for path in place.folder.glob("*/about.json"):
        if json.loads(path.read_text())["decoder"] != "another":
            path.write_text(json.dumps(about))
    assert prepare(["--list", "--folder", str(place.folder)]) == 0
    assert capsys.readouterr().out.count("(not used here)") == 1
    (path,) = [path for path, about, _, _ in prepared.sets(place.folder) if not prepared.usable(about)]
    assert prepare(["--remove", path.name, "--folder", str(place.folder)]) == 0 and not path.exists()


def test_a_long_pass_over_files_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tree(tmp_path)
    with remembered.afresh():
        prepared.looked_over([files], None)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(host, "SAID_AFTER", 0.0)
    with remembered.afresh():
        prepared.looked_over([files], None)
    said = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in said} == {"reading files", "decoding 9 images once"}
    assert all(re.fullmatch(r".*: \d+ a second, \d+ done", line) for line in said)


def test_label_maps_are_prepared_with_their_padding(tmp_path: Path) -> None:
    table = np.full(256, IGNORED, np.uint8)
    table[:3] = 0, 1, 2
    paths = []
    for number, size in enumerate([(32, 48), (24, 40)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 4, size, dtype=np.uint8)).save(paths[-1])
    maps = Files(paths, (16, 24), 0.5, table)
    ((ready,), (counts,)) = prepared.looked_over([maps], Place(tmp_path / "prepared", True))
    assert (whole(ready) == whole(maps)).all() and (whole(ready)[1, 12:] == IGNORED).all() and not counts.any()


def test_images_whose_pixels_are_stored_as_they_are_are_not_prepared(tmp_path: Path) -> None:
    data = make("digits", tmp_path, limit=20).load()
    assert prepared.applied(data, Place(tmp_path / "prepared", True)) is data
    assert not (tmp_path / "prepared").exists()


def test_the_place_is_what_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepared.place(False) is None
    assert prepared.place(True) == Place(tmp_path / "cache" / "prepared", False)
    assert prepared.place("mine") == Place(tmp_path / "mine", True)
    monkeypatch.setattr(remembered, "cache_folder", _no_home)
    assert prepared.place(True) is None


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_mean_and_std_are_those_of_all_pixels_to_the_last_bit(tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", ["cat", "dog"], train=6, test=2, size=24)
    data = make("image_folder", tmp_path, folder="mine", image_size=20).load()
    trees = import_module("harness.datasets._trees")
    assert (data.mean, data.std) == trees.mean_and_std(whole(data.train_images))


# ------------------------------------------------------------------------------------------------------- command lines


def config(root: Path, **dataset: Any) -> str:
    """Write a config of two methods on a tree of photographs, and return its path."""
    if not (root / "mine").exists():
        for part, count in (("train", 8), ("test", 3)):
            for label, name in enumerate(("cat", "dog")):
                (root / "mine" / part / name).mkdir(parents=True)
                for number in range(count):
                    image = photograph(40 + number, 60 - 20 * label, seed=2 * number + label)
                    image.save(root / "mine" / part / name / f"{number}.jpg", quality=90)
    values = {
        "dataset": {"name": "image_folder", "folder": "mine", "image_size": 16, **dataset},
        "model": {"name": "resnet_small", "width": 4},
        "recipe": {"epochs": 1, "batch_size": 4, "crop_padding": 1},
        "protocol": {"initial": 6, "budget": 2, "cycles": 2, "start": "warm"},
        "methods": {"Ran": "random", "Margin": "margin"},
        "seeds": [0],
        "where": {"trials": "in_process", "data": str(root), "output": str(root / "out")},
    }
    path = root / "pool.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    table = harness.load(folder)
    return [
        (*row,) for row in table[["method", "cycle", "accuracy", "final_loss", "selected_files"]].astype(str).values
    ]


def test_records_are_the_same_however_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written, found = config(tmp_path), []
    for name, place, kept in (
        ("memory", rows.ON_DEVICE, "false"),
        ("streamed", rows.STREAMED, "false"),
        ("host", rows.IN_MEMORY, "false"),
        ("prepared", rows.STREAMED, str(tmp_path / "kept")),
    ):
        monkeypatch.setattr(rows, "_held", lambda nbytes, device, place=place: place)
        assert main([written, f"where.output={tmp_path / name}", f"where.prepared={kept}"]) == 0
        found.append(outcomes(tmp_path / name))
    assert len(found[0]) == 4 and found.count(found[0]) == len(found)
    assert len(list((tmp_path / "kept").rglob("*.rows"))) == 2
    monkeypatch.setattr(Files, "decode", lambda *_: pytest.fail("the rows are there"))
    assert main([written, "--resume", f"where.output={tmp_path / 'prepared'}", "seeds=[0,1]",
                 f"where.prepared={tmp_path / 'kept'}"]) == 0  # fmt: skip


def test_prepare_keeps_and_lists_and_removes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    written, kept = config(tmp_path), tmp_path / "kept"
    for _ in range(2):
        assert prepare([written, f"where.prepared={kept}"]) == 0
        assert f"pool: all images are prepared in {kept} (29.2 kB), " in capsys.readouterr().out
    assert prepare(["--list", "--folder", str(kept)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[1:])) <= 80, "paths go on within their cells"
    monkeypatch.setenv("COLUMNS", "300")
    assert prepare(["--list", "--folder", str(kept)]) == 0
    lines = capsys.readouterr().out.splitlines()
    train, test = sorted(lines[3:], key=lambda line: "16 images" not in line)  # their order is that of the hashes
    assert lines[0] == f"{kept}:" and train.split()[1:6] == ["16", "images", "of", "16", "x"]
    assert train.endswith("train/cat/0.jpg") and "6 images of 16 x 16" in test
    assert prepare(["--remove", "nothing", "--folder", str(kept)]) == 2
    assert f"kept has nothing of the name 'nothing'; allowed: {min(line[:12] for line in lines[3:])}" in (
        capsys.readouterr().err
    )
    assert prepare(["--remove", train.split()[0], "--folder", str(kept)]) == 0
    assert capsys.readouterr().out.startswith("removed 18.") and len(prepared.sets(kept)) == 1
    assert prepare(["--remove", "all", "--folder", str(kept)]) == 0 and not list(kept.iterdir())
    assert prepare(["--list", "--folder", str(kept)]) == 0
    assert f"nothing is prepared in {kept}\n" in capsys.readouterr().out


def test_prepare_says_what_it_can_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = config(tmp_path)
    for words, problem in (
        ([], "choose a config, --list or --remove"),
        ([written, "--list"], "choose a config, --list or --remove"),
        ([written, "--folder", "x"], "with a config, write where.prepared=FOLDER"),
        ([written, "where.prepared=false"], "where.prepared: false keeps nothing; write true, or a folder"),
        ([written, "where.prepared=''"], "where.prepared"),
        ([written, "dataset.image_sise=3"], "image_sise"),
        (["--list", "--folder", str(tmp_path / "typo")], f"--folder: {tmp_path / 'typo'} is not there"),
        (["--remove", "all", "--folder", str(tmp_path / "typo")], f"--folder: {tmp_path / 'typo'} is not there"),
    ):
        assert prepare(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and problem in said
    assert prepare([written, "dataset=digits"]) == 0
    assert capsys.readouterr().out == "pool: nothing to do, its images are held in memory\n"
    assert prepare([written, "dataset.folder=absent"]) == 2
    assert "pool can't be prepared: there is no folder" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert prepare([written, f"where.prepared={tmp_path / 'file'}"]) == 1
    assert "pool: NOT all images are prepared in" in capsys.readouterr().out


def test_label_maps_of_a_run_are_prepared_if_they_are_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "mine", sizes=[(32, 48)] * 4)
    expected = own(root, scale=0.5).load()
    dataset = own(root, scale=0.5)
    data = prepared.applied(dataset.load(), Place(tmp_path / "kept", True))
    ready = [files.prepared is not None for files in (data.train_images, data.train_labels, data.test_images)]
    assert ready == [True] * 3 and data.test_labels.prepared is None, "which keep their own size"
    decoded = spied(monkeypatch)
    for name in ("train_images", "train_labels", "test_images"):
        assert (whole(getattr(data, name)) == whole(replace(getattr(expected, name)))).all()
    assert len(decoded) == 12, "those of the other data"
    assert data.fingerprint == expected.fingerprint
    assert isinstance(data.names, Names) and data.names == ("images/train/000.png", "images/train/001.png",
                                                            "images/train/002.png", "images/train/003.png")  # fmt: skip
    sizes = [getattr(data, name).nbytes for name in ("train_images", "train_labels", "test_images")]
    assert dataset.info().resized == sum(sizes)


def test_memory_of_a_batch_is_used_again_only_once_nothing_refers_to_it() -> None:
    array = np.arange(40, dtype=np.uint8).reshape(20, 2)
    parts = torch.arange(20).split(3)
    everything = list(Streamed(array, torch.device("cpu")).ahead(parts))
    assert torch.cat(everything).tolist() == array.tolist(), "a loop that keeps its batches"
    firsts = [batch[0] for batch in Streamed(array, torch.device("cpu")).ahead(parts)]
    assert [first.tolist() for first in firsts] == array[::3].tolist(), "one that keeps a part of each"
    places = {batch.data_ptr() for batch in Streamed(array, torch.device("cpu")).ahead(torch.arange(20).split(2))}
    assert len(places) <= AHEAD + 2, "one that keeps none"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all memory of batches that is made."""
    sizes: list[int] = []
    original = rows._Block.__init__

    def init(self: rows._Block, size: int) -> None:
        sizes.append(size)
        original(self, size)

    monkeypatch.setattr(rows._Block, "__init__", init)
    monkeypatch.setattr(rows, "_spare", [])
    return sizes


def loop(array: np.ndarray[Any, Any], size: int) -> Iterator[torch.Tensor]:
    return Streamed(array, CPU).ahead(torch.arange(len(array)).split(size))


def test_memory_of_batches_is_used_again_by_later_loops(made: list[int]) -> None:
    array = np.arange(4000).reshape(1000, 4)
    for _ in range(5):
        for number, batch in enumerate(loop(array, 10)):
            assert batch[0, 0] == 40 * number
    assert len(made) <= AHEAD + 1
    pairs = zip(loop(array, 10), loop(array[:, 0] * 2, 10), strict=True)
    firsts = [(int(one[0, 0]), int(other[0])) for one, other in pairs]
    assert firsts == [(40 * number, 80 * number) for number in range(100)]
    assert len(made) <= 2 * (AHEAD + 2), "two loops at once"


def test_a_small_batch_does_not_keep_the_memory_of_a_large_one(made: list[int]) -> None:
    array = np.zeros((1000, 100))
    [*loop(array, 500)]
    kept = [Streamed(array, CPU)[torch.tensor([i])] for i in range(20)]
    assert max(made[-20:]) == kept[0].nbytes and len(made) >= 20


def test_no_more_memory_is_kept_than_stated(made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEPT_BYTES", 1000)
    [*loop(np.zeros((1000, 10)), 5)]
    assert sum(block.memory.nbytes for block in rows._spare) <= 1000 and rows._spare


def test_a_loop_that_ends_while_memory_is_looked_for_does_no_harm(made: list[int]) -> None:
    """Python's collector may end an abandoned loop anywhere."""
    array = np.arange(4000).reshape(1000, 4)
    [*loop(array, 10)]
    original = rows._Block.fits
    left = loop(array, 10)
    next(left)

    def fits(self: rows._Block, size: int) -> bool:
        left.close()
        return original(self, size)

    rows._Block.fits = fits  # type: ignore[method-assign]
    try:
        assert torch.cat([*loop(array, 10)]).tolist() == array.tolist()
    finally:
        rows._Block.fits = original  # type: ignore[method-assign]
