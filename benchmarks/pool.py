"""What a pool of photographs costs: decoding, reading prepared images, memory, and the first batch of a million files.

    python benchmarks/pool.py [--images 10000] [--classes 100] [--side 224] [--steps 1000 10000] [--folder DIR]

It makes JPEGs of 500 x 375 pixels, quality 90: parts of the photographs of scikit-learn, and of CamVid if $HARNESS_DATA
has it. With --folder they are kept, and only missing ones are made. All loops read files that the system has cached;
they run in turns, so that a busy machine slows all of them. Memory is that of a new process for each size of pool.
--classes 2 measures flat folders. The next load of a size is a start whose listing is made again and whose hashes are
remembered. The index of many files is what a trial gets: it is read from disk by a new process, which lists and hashes
nothing; its time is given from the process's start, with all imports, and without them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from measure import in_turns, parser
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from tabulate import tabulate
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from harness import registry
from harness.config.suite import PluginSpec, open_dataset
from harness.data.dataset import Dataset, LoadedData
from harness.data.files import Files
from harness.data.paths import Paths
from harness.data.rows import Streamed
from harness.learning.process import peak_memory, reset_peak_memory
from harness.settings import Where

HEIGHT, WIDTH, QUALITY = 375, 500, 90
BATCH = 250
CPU = torch.device("cpu")


def arguments() -> argparse.ArgumentParser:
    """Return the command line's options."""
    options = parser(__doc__, len(os.sched_getaffinity(0)), images=10_000, classes=100, side=224, rounds=3, index=10**6)
    options.add_argument("--steps", type=int, nargs="*", help="sizes of pool, for memory; default: 1000, and --images")
    options.add_argument("--sample", type=int, default=1000, help="images of the loops that decode")
    options.add_argument("--folder", type=Path, help="where the JPEGs are, or will be, and stay")
    options.add_argument("--child", help=argparse.SUPPRESS)
    return options


# ------------------------------------------------------------------------------------------------------- photographs


@cache
def photographs() -> list[Image.Image]:
    """Return the photographs that the images are parts of."""
    found = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    camvid = Path(os.environ.get("HARNESS_DATA", "data")) / "camvid"
    for path in sorted(camvid.rglob("train/*.png"))[::20]:
        with Image.open(path) as image:
            if image.mode == "RGB":
                found.append(image.copy())
    return found


def make(path: Path, number: int) -> None:
    """Write an image, which depends on its number alone: 50 to 100 % of the sides of a photograph."""
    if path.exists():
        return
    draw = np.random.default_rng(number)
    every = photographs()
    image = every[draw.integers(len(every))]
    width = draw.uniform(0.5, 1) * min(image.width, image.height * WIDTH / HEIGHT)
    height = width * HEIGHT / WIDTH
    left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
    part = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(simplejpeg.encode_jpeg(np.asarray(part), quality=QUALITY, colorsubsampling="420"))
    unfinished.rename(path)


def write_pool(folder: Path, images: int, classes: int, threads: int) -> None:
    """Write ``images`` into train/<class>/ and one for each class into test/<class>/, as far as they are missing."""
    wanted = [(folder / "train" / f"{i % classes:04}" / f"{i:07}.jpg", i) for i in range(images)]
    wanted += [(folder / "test" / f"{i:04}" / "0.jpg", 10**9 + i) for i in range(classes)]
    for parent in {path.parent for path, _ in wanted}:
        parent.mkdir(parents=True, exist_ok=True)
    photographs()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: make(*one), wanted))


# -------------------------------------------------------------------------------------------------------- bare loops


def with_pillow(path: Path) -> Any:
    """Decode with Pillow."""
    return np.asarray(Image.open(path).convert("RGB"))


def with_torchvision(path: Path) -> Any:
    """Decode with torchvision."""
    return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)


def with_simplejpeg(path: Path) -> Any:
    """Decode with simplejpeg."""
    return simplejpeg.decode_jpeg(path.read_bytes())


def and_resize(side: int) -> Callable[[Path], Any]:
    """Return a function that decodes with simplejpeg, and resizes with Pillow."""

    def resize(path: Path) -> Any:
        return ImageOps.fit(Image.fromarray(with_simplejpeg(path)), (side, side), Image.Resampling.BILINEAR)

    return resize


def loop(decode: Callable[[Path], Any], paths: list[Path], threads: int) -> Callable[[], None]:
    """Return a loop over files in threads, which keeps nothing."""
    parts = [paths[first::threads] for first in range(threads)]

    def work(part: list[Path]) -> None:
        for path in part:
            decode(path)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))

    return run


def streamed(files: Files, rows: int) -> Callable[[], None]:
    """Return a loop that reads rows in batches, as training and scoring do."""

    def run() -> None:
        for _ in Streamed(files, CPU).ahead(torch.arange(rows).split(BATCH)):
            pass

    return run


def rates(asked: argparse.Namespace, pool: Path) -> list[list[Any]]:
    """Return a row (what, images/s, smallest, largest, share of the fastest bare loop) for each loop."""
    count = min(asked.sample, asked.images)
    plain, kept = (loaded(pool, asked, count, place).train_images for place in (False, True))
    half = loaded(pool, asked, count, False, HEIGHT // 2).train_images
    paths = list(plain.paths)
    works = {
        "Pillow, bare loop": loop(with_pillow, paths, asked.threads),
        "torchvision.io, bare loop": loop(with_torchvision, paths, asked.threads),
        "simplejpeg, bare loop": loop(with_simplejpeg, paths, asked.threads),
        f"simplejpeg, and resized to {asked.side} by Pillow": loop(and_resize(asked.side), paths, asked.threads),
        f"ours, from files, at {asked.side}": streamed(plain, count),
        f"ours, from files, at {HEIGHT // 2}, decoded at half size": streamed(half, count),
        f"ours, from files, at {WIDTH} x {HEIGHT}": streamed(Files(paths, (HEIGHT, WIDTH), whole=True), count),
        f"ours, prepared, at {asked.side}": streamed(kept, count),
    }
    times = in_turns(works, asked.rounds, CPU)
    fastest = [min(times[name][r] for name in works if "bare" in name) for r in range(asked.rounds)]
    rows = []
    for name, took in times.items():
        speeds = [count / one for one in took]
        share = statistics.median(best / one for best, one in zip(fastest, took, strict=True))
        rows.append([name, statistics.median(speeds), min(speeds), max(speeds), f"{share:.0%}"])
    return rows


# ------------------------------------------------------------------------------------------- sizes of pool, and index


def loaded(
    pool: Path, asked: argparse.Namespace, limit: int, prepared: bool | str, side: int | None = None
) -> LoadedData:
    """Return the first images of each class of the pool, as a run loads them."""
    keys = {"folder": str(pool), "image_size": side or asked.side, "limit": limit}
    found: Any = registry.find("datasets", "image_folder", Dataset)
    return open_dataset(PluginSpec("image_folder", found.Settings(**keys)), Where(prepared=prepared)).load()


def child(task: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return what a new process measures."""
    torch.set_num_threads(asked.threads)
    words = json.loads(task)
    if "index" in words:
        folder = Path(words["index"])
        torch.zeros(1)
        began = time.perf_counter()
        buffers = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
        files = pickle.loads((folder / "pickle").read_bytes(), buffers=buffers)  # noqa: S301 (its parent wrote it)
        after = time.perf_counter()
        next(Streamed(files, CPU).ahead(torch.arange(0, len(files), max(1, len(files) // BATCH)).split(BATCH)))
        return {"index": after - began, "batch": time.perf_counter() - began, "files": len(files)}
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["host"]
    began = time.perf_counter()
    data = loaded(Path(words["pool"]), asked, words["limit"], words["prepared"])
    loading = time.perf_counter() - began
    began = time.perf_counter()
    streamed(data.train_images, len(data.train_images))()
    return {
        "loading": loading,
        "rate": len(data.train_images) / (time.perf_counter() - began),
        "peak": peak_memory(CPU)["host"] - before,
    }


def in_child(asked: argparse.Namespace, **task: Any) -> dict[str, Any]:
    """Return what ``child`` returns in a new process."""
    words = [sys.executable, __file__, "--threads", str(asked.threads), "--side", str(asked.side)]
    ran = subprocess.run([*words, "--child", json.dumps(task)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def sizes(asked: argparse.Namespace, pool: Path) -> Iterator[list[Any]]:
    """Yield (images, seconds of the first load and of the next one, images/s, peak memory) for each size of pool."""
    for limit in asked.steps or sorted({min(1000, asked.images), asked.images}):
        for prepared in (False, True):
            first = in_child(asked, pool=str(pool), limit=limit, prepared=prepared)
            again = in_child(asked, pool=str(pool), limit=limit, prepared=prepared)
            how = "prepared" if prepared else "from files"
            peaks = [f"{one['peak'] / 1e6:.0f}" for one in (first, again)]
            yield [limit, how, first["loading"], again["loading"], again["rate"], *peaks]


def million(asked: argparse.Namespace, pool: Path, folder: Path) -> dict[str, Any]:
    """Return the seconds until a process has an index of many files, which are links to a few, and its first batch."""
    train = loaded(pool, asked, min(asked.images, 10_000), False).train_images
    assert isinstance(train.paths, Paths)
    times = -(-asked.index // len(train))
    many = Files(Paths.joined(train.paths.root, [train.paths] * times)[: asked.index], train.size, cover=train.cover)
    buffers: list[Any] = []
    (folder / "pickle").write_bytes(pickle.dumps(many, protocol=5, buffer_callback=buffers.append))
    for number, buffer in enumerate(buffers):
        np.save(folder / f"{number:03}.npy", np.frombuffer(buffer.raw(), dtype=np.uint8))
    began = time.perf_counter()
    found = in_child(asked, index=str(folder))
    return {**found, "process": time.perf_counter() - began}


def main(words: list[str] | None = None) -> None:
    """Measure and print three tables."""
    asked = arguments().parse_args(words)
    if asked.child:
        print(json.dumps(child(asked.child, asked)))
        return
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = str(Path(folder, "cache"))
        pool = (asked.folder or Path(folder, "pool")).absolute()
        write_pool(pool, asked.images, asked.classes, asked.threads)
        some = [path.stat().st_size for path in islice((pool / "train").rglob("*.jpg"), 1000)]
        print(
            f"{asked.images} JPEGs of {WIDTH} x {HEIGHT}, quality {QUALITY}, {np.mean(some) / 1e3:.1f} kB on average, "
            f"in {asked.classes} classes; {asked.threads} threads, {asked.rounds} rounds\n"
        )
        heads = ["", "images/s (median)", "min", "max", "of the fastest bare loop"]
        print(tabulate(rates(asked, pool), heads, floatfmt=".0f"), flush=True)
        heads = ["images", "rows", "first load (s)", "next load (s)", "images/s", "peak, first (MB)", "peak, next (MB)"]
        print(f"\n{tabulate(sizes(asked, pool), heads, floatfmt='.1f')}", flush=True)
        index = Path(folder, "index")
        index.mkdir()
        found = million(asked, pool, index)
        print(
            f"\nan index of {found['files']} files on disk, nothing listed or hashed: {found['index']:.3f} s until a "
            f"process that has imported torch has it, {found['batch']:.2f} s until its first batch of {BATCH}; "
            f"{found['process']:.2f} s for all of a new process, with its imports"
        )


if __name__ == "__main__":
    main()
