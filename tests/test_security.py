"""No file that is read can run a command, and nothing that is run lies where another user can have placed it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_datasets import archive, count_as_official, make, official, save, write_tree

import harness
from harness import private, registry
from harness.data import remembered
from harness.data.dataset import DatasetInfo
from harness.errors import DataMissing, UserError
from harness.networks.building import build
from harness.networks.names import spec
from harness.on_ray.beats import Watch
from harness.prepare import main as prepare
from harness.report import index
from harness.report.__main__ import main as report
from harness.results import progress
from harness.results.manifest import Manifest
from harness.results.pictures import SelectedImages
from harness.results.store import RunStore
from harness.run import main
from harness.status import main as status

ROOT = Path(__file__).resolve().parent.parent

CONFIG = {
    "dataset": {"name": "scenes", "train": 20, "test": 5, "size": [32, 48]},
    "model": {"name": "drn_small", "width": 4},
    "recipe": {"epochs": 1, "batch_size": 4},
    "protocol": {"initial": 4, "budget": 2, "cycles": 3, "start": "warm"},
    "methods": {"Ran": "random"},
    "seeds": [0],
    "where": {"trials": "in_process", "device": "cpu"},
}


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.target), 0o777, True)


def _bytes(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def forms(target: Path) -> dict[str, bytes]:
    """Return files that run a command, if they are read without care: each would make the folder ``target``."""
    payload: Any = Payload(target)
    objects = np.array([payload], dtype=object)
    names = "train_images", "train_labels", "test_images", "test_labels", "images", "indices", "classes"
    return {
        "pickle": pickle.dumps(payload),
        "old pickle": pickle.dumps({"data": payload, "labels": payload}, protocol=2),
        "torch": _bytes(lambda file: torch.save({"network": payload}, file)),
        "old torch": _bytes(lambda file: torch.save(payload, file, _use_new_zipfile_serialization=False)),
        "npy": _bytes(lambda file: np.save(file, objects)),
        "npz": _bytes(lambda file: np.savez(file, **dict.fromkeys(names, objects))),
        "yaml": f"x: !!python/object/apply:os.mkdir ['{target}']\n".encode(),
        "eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}/x) (w) file\n%%EOF\n".encode(),
    }


READERS: dict[str, Callable[[bytes], Any]] = {
    "pickle": pickle.loads,
    "old pickle": pickle.loads,
    "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "old torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
    "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
    "npz": lambda data: dict(np.load(io.BytesIO(data), allow_pickle=True)),
    "yaml": yaml.unsafe_load,
}


@pytest.mark.parametrize("form", READERS)
def test_the_payload_works_where_it_is_trusted(form: str, tmp_path: Path) -> None:
    READERS[form](forms(tmp_path / "ran")[form])
    assert (tmp_path / "ran").is_dir()


def harmless(target: Path, read: Callable[[], Any]) -> None:
    """Read; what is wrong with a file is one sentence, and the payload does not run."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error), error
    assert not target.exists(), "the payload ran"


# ------------------------------------------------------------------------------------------------ a results folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run with label maps, which also stores its first selected images."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main([str(folder / "c.yaml"), f"where.output={folder / 'out'}"]) == 0
    return folder


KINDS = [
    *("run.json", "config.yaml", "cycle_000.json", "records.jsonl", "trial.json", "state_002.pt", "selected_000.npz"),
    "progress.json",
]


def readings(folder: Path, whole: bool) -> list[Callable[[], Any]]:
    """Return what reads a results folder: its parts, and if ``whole`` the commands, which take seconds."""
    command, store = [str(folder / "c.yaml"), f"where.output={folder / 'out'}"], RunStore(folder / "out")
    (trial,) = (store.trial(path.name) for path in (folder / "out" / "trials").iterdir())
    commands = [lambda: report([str(folder / "out")]), lambda: main([*command, "--resume"])]
    return [
        lambda: harness.load(folder / "out"),
        lambda: main([*command, "--plan"]),
        trial.resume_point,
        lambda: trial.problems(len(trial.records())),
        lambda: SelectedImages.read(trial.pictures_path),
        lambda: status([str(folder / "out")]),
        *(commands if whole else ()),
    ]


def test_the_kinds_of_files_are_all_that_a_run_writes(done: Path) -> None:
    written = {path.name for path in (done / "out").rglob("*") if path.is_file() and "report" not in path.parts}
    assert {name.replace("0000", "000") for name in written} - {"cycle_001.json", "cycle_002.json", "state_001.pt"} == {
        *KINDS
    }


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_results_folder_runs_commands(kind: str, done: Path, tmp_path: Path) -> None:
    for number, (form, data) in enumerate(forms(tmp_path / "ran").items()):
        folder = tmp_path / str(number)
        shutil.copytree(done, folder)
        for path in (folder / "out").rglob(kind):
            path.write_bytes(data)
            if kind == "state_002.pt":  # whoever writes the payload also writes its checksum
                cycle = path.with_name("cycle_002.json")
                body = json.loads(cycle.read_bytes())["body"]
                body["state"] = hashlib.sha256(data).hexdigest()
                digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
                cycle.write_text(json.dumps({"sha256": digest, "body": body}))
                with pytest.raises(UserError, match=r"state_002.pt: is no state of a trial: remove it, and its cycle"):
                    RunStore(folder / "out").trial(path.parent.name).resume_point()
        for read in readings(folder, whole=form == "torch"):
            harmless(tmp_path / "ran", read)
        if kind == "state_002.pt" and form == "torch":
            next((folder / "out").rglob(kind)).unlink()
            assert main([str(folder / "c.yaml"), f"where.output={folder / 'out'}", "--resume"]) == 0


def test_no_index_lock_or_heartbeat_runs_commands(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run or its report leaves beside the results: whoever reads it goes on without it."""
    folder = tmp_path / "out"
    shutil.copytree(done / "out", folder)
    monkeypatch.setattr(index, "FEWEST", 0)
    monkeypatch.setattr(index, "YOUNG", -(10**9))
    assert report([str(folder)]) == 0
    (kept,) = (folder / "index").iterdir()
    for data in forms(tmp_path / "ran").values():
        kept.write_bytes(data)
        harmless(tmp_path / "ran", lambda: report([str(folder)]))
        (folder / "lock.1").write_bytes(data)
        harmless(tmp_path / "ran", lambda: status([str(folder)]))
        harmless(tmp_path / "ran", lambda: main([str(done / "c.yaml"), f"where.output={folder}", "--resume"]))
        for path in folder.glob("lock.*"):
            path.unlink()
        (tmp_path / "beats").mkdir(exist_ok=True)
        (tmp_path / "beats" / "0").write_bytes(data)
        assert Watch(tmp_path / "beats").stalled(-1) == []
        (tmp_path / "progress").write_bytes(data)
        assert progress.read(tmp_path / "progress") is None
        assert not (tmp_path / "ran").exists(), "the payload ran"


@pytest.mark.parametrize("name", ["trials/..", "trials/../../x", "/etc", "trials/a/b", "shared/.", "elsewhere/x", ""])
@pytest.mark.parametrize("side", [0, 1])
def test_a_manifest_names_no_folder_outside(name: str, side: int, done: Path, tmp_path: Path) -> None:
    """A resumed run writes into these folders, and removes old states there."""
    values = json.loads((done / "out" / "run.json").read_text())
    values["folders"] = {name: "trials/x"} if side == 0 else {"trials/x": name}
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"run.json: not the manifest of a run: folders: .* is not trials/ID or"):
        Manifest.read(tmp_path)


NOTHING_UNPICKLES = """
import sys
found = []
sys.addaudithook(lambda event, values: found.append(values) if event == "pickle.find_class" else None)
from harness.report.__main__ import main as report
from harness.run import main
config, folder = sys.argv[1:]
assert main([config, f"where.output={folder}", "protocol.cycles=2"]) == 0
assert main([config, f"where.output={folder}", "--resume"]) == 0
assert report([folder]) == 0
assert not found, found
import pickle
pickle.loads(pickle.dumps(print))
assert found, "the hook is not called"
"""


@pytest.mark.long
@pytest.mark.parametrize("data", ["drawn", "files"])
def test_a_whole_run_its_resumption_and_its_report_unpickle_nothing(data: str, tmp_path: Path) -> None:
    """Python tells its audit hooks of every class or function that a pickle names."""
    values = dict(CONFIG)
    if data == "files":  # with prepared images and weights
        write_tree(tmp_path / "data" / "mine", ["a", "b"], train=10, test=2, size=16)
        network = build(spec("resnet_small", width=4), DatasetInfo(20, 4, 2, 3, (8, 8), ""), 0)
        torch.save(network.body.state_dict(), tmp_path / "w.pt")
        values["dataset"] = {"name": "image_folder", "folder": "mine", "image_size": 8}
        values["model"] = {"name": "resnet_small", "width": 4, "weights": str(tmp_path / "w.pt")}
        values["where"] = {**CONFIG["where"], "data": str(tmp_path / "data"), "prepared": str(tmp_path / "kept")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_UNPICKLES, str(tmp_path / "c.yaml"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------- configs and weights


@pytest.mark.parametrize("form", ["pickle", "torch", "npz", "yaml"])
def test_no_config_runs_commands(form: str, tmp_path: Path) -> None:
    path, data = tmp_path / "c.yaml", forms(tmp_path / "ran")[form]
    path.write_bytes(data)
    assert main([str(path), "--plan"]) == 2
    path.write_bytes(b"dataset:\n  " + data if form == "yaml" else data)
    assert main([str(path), "--plan"]) == 2
    assert main(["quickstart", f"dataset={data!r}" if form != "yaml" else data.decode(), "--plan"]) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".npz"])
@pytest.mark.parametrize("model", ["resnet_small", "resnet18"])
def test_no_weights_run_commands(suffix: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    for data in forms(tmp_path / "ran").values():
        path.write_bytes(data)
        with pytest.raises(UserError, match="can't be read as a file of tensors"):
            build(spec(model, weights=str(path)), DatasetInfo(1, 1, 10, 3, (32, 32), ""), 0)
        assert not (tmp_path / "ran").exists(), "the payload ran"


def test_weights_of_packages_are_read_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages, the hub's cache and torch's: whatever finds the file, one function reads it."""
    from harness.networks import pretrained

    path = tmp_path / "w.pth"
    found = pretrained.Pretrained(path, "", (0.5,) * 3, (0.5,) * 3, "resnet18", False)
    monkeypatch.setattr(pretrained, "find", lambda *_: found)
    for data in forms(tmp_path / "ran").values():
        path.write_bytes(data)
        with pytest.raises(UserError, match="can't be read as a file of tensors"):
            build(spec("resnet18", weights="pretrained"), DatasetInfo(1, 1, 10, 3, (32, 32), ""), 0)
        assert not (tmp_path / "ran").exists(), "the payload ran"


# ----------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test that remembers files at once."""
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(remembered, "_entries", {})
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image_tree(root: Path) -> Any:
    write_tree(root / "mine", ["a", "b"], size=8)
    return make("image_folder", root, folder="mine", image_size=8)


def label_maps(root: Path) -> Any:
    for part, count in (("train", 3), ("val", 2)):
        (root / "mine" / "lists").mkdir(parents=True, exist_ok=True)
        (root / "mine" / "lists" / f"{part}.txt").write_text("".join(f"{part}{i}\n" for i in range(count)))
        for number in range(count):
            save(root / "mine" / "images" / "x" / f"{part}{number}.png", np.zeros((8, 8, 3), np.uint8))
            save(root / "mine" / "maps" / "x" / f"{part}{number}.png", np.eye(8, dtype=np.uint8))
    keys = {"images": "images/x", "labels": "maps/x", "lists": "lists/{split}.txt", "test": ["val"], "size": [8, 8]}
    return make("segmentation_folder", root, folder="mine", classes=["a", "b"], **keys)


def cityscapes(root: Path) -> Any:
    registry.load("datasets", "cityscapes").write_cityscapes(root, train=2, test=1)
    return make("cityscapes", root, scale=0.25)


def cifar_tree(root: Path) -> Any:
    write_tree(root / "cifar10", sys.modules["harness.datasets._cifar"].CIFAR10.classes)
    return make("cifar10", root)


def cifar_generated(root: Path) -> Any:
    archive(root, "cifar100")
    return make("cifar100", root)


@pytest.mark.parametrize("data", [image_tree, label_maps, cityscapes, cifar_tree, cifar_generated])
def test_no_data_run_commands(data: Callable[[Path], Any], tmp_path: Path, cache: Path) -> None:
    dataset = data(tmp_path / "data")
    _ = dataset.load().fingerprint
    files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    kinds = {(path.parent.parent if path.suffix == ".png" else path): path for path in files}
    for path in kinds.values():
        before = path.read_bytes()
        for form in forms(tmp_path / "ran").values():
            path.write_bytes(form)
            again = type(dataset)(dataset.settings, dataset.data_root)
            for read in (again.info, again.examine, lambda: again.load().fingerprint):  # noqa: B023
                harmless(tmp_path / "ran", read)
        path.write_bytes(before)


def instead(path: Path) -> Iterator[str]:
    """Put a pipe, a device and a link to itself in the place of a file, one after the other; then the file again."""
    before = path.read_bytes()
    for name, target in (("pipe", None), ("device", "/dev/zero"), ("loop", path.name)):
        path.unlink()
        path.symlink_to(target) if target else os.mkfifo(path)
        yield name
    path.unlink()
    path.write_bytes(before)


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("data", [image_tree, label_maps, cityscapes, cifar_tree, cifar_generated])
def test_no_data_are_a_pipe_a_device_or_a_loop(data: Callable[[Path], Any], tmp_path: Path, cache: Path) -> None:
    """They are left out and counted, or refused in a sentence."""
    dataset = data(tmp_path / "data")
    files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    for path in {(path.parent.parent if path.suffix == ".png" else path): path for path in files}.values():
        for name in instead(path):
            again = type(dataset)(dataset.settings, dataset.data_root)
            try:
                notes = again.info().notes
                _ = again.load().fingerprint
            except UserError as error:
                assert "\n" not in str(error)
            else:
                assert any("left out" in note for note in notes) or path.name == "GENERATED", (name, path)


@pytest.mark.parametrize("data", [image_tree, label_maps])
def test_no_cache_runs_commands(data: Callable[[Path], Any], tmp_path: Path, cache: Path) -> None:
    dataset = data(tmp_path / "data")
    expected = dataset.load().fingerprint
    dataset.examine()
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    for form in forms(tmp_path / "ran").values():
        for path in files:
            path.write_bytes(form)
        remembered._entries.clear()
        dataset.examine()
        assert dataset.load().fingerprint == expected
        assert not (tmp_path / "ran").exists(), "the payload ran"


def test_no_prepared_images_run_commands(tmp_path: Path, cache: Path) -> None:
    image_tree(tmp_path / "data")
    values = {**CONFIG, "dataset": {"name": "image_folder", "folder": "mine", "image_size": 8}}
    values |= {
        "model": {"name": "resnet_small", "width": 4},
        "protocol": {"initial": 2, "budget": 1, "cycles": 1, "start": "warm"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    given = [str(tmp_path / "c.yaml"), f"where.data={tmp_path / 'data'}", f"where.prepared={tmp_path / 'kept'}"]
    assert prepare(given) == 0
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert files
    for number, data in enumerate(forms(tmp_path / "ran").values()):
        for path in files:
            path.write_bytes(data)
        harmless(tmp_path / "ran", lambda: prepare(["--list", "--folder", str(tmp_path / "kept")]))
        harmless(tmp_path / "ran", lambda n=number: main([*given, f"where.output={tmp_path / str(n)}"]))  # type: ignore[misc]


def test_an_image_is_only_of_the_formats_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an EPS with any suffix, Pillow would start Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    dataset = image_tree(tmp_path)
    path = next((tmp_path / "mine").rglob("*.png"))
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    for read in (dataset.examine, dataset.load):
        with pytest.raises(DataMissing, match="no image, or of a kind that is not read"):
            read()


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("beside", [None, "GENERATED", "cifar10_generated.npz"])
def test_nothing_makes_other_batches_trusted(kind: str, beside: str | None, tmp_path: Path) -> None:
    """Until this version, a file GENERATED beside them with their checksums did."""
    about = sys.modules["harness.datasets._cifar"].KINDS[kind]
    folder, data = tmp_path / about.folder, forms(tmp_path / "ran")["old pickle"]
    folder.mkdir()
    names = [*about.train, *about.test, "batches.meta", "meta"]
    for name in names:
        (folder / name).write_bytes(data)
    if beside is not None:
        md5 = dict.fromkeys(names, hashlib.md5(data).hexdigest())
        marker = {"note": "generated", "md5": md5, "num_train": 1, "num_test": 1}
        (folder / beside).write_text(json.dumps(marker))
    for download in (False, True):
        dataset = make(kind, tmp_path, download=download)
        for read in (dataset.info, dataset.load):
            with pytest.raises(DataMissing, match="is not read, because its MD5 sum is not that of CIFAR"):
                read()
    assert not (tmp_path / "ran").exists()


def test_what_is_unpickled_are_the_bytes_that_were_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is exchanged between two readings is checked again."""
    official(tmp_path, monkeypatch)
    dataset = make("cifar10", tmp_path)
    dataset.info()
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(forms(tmp_path / "ran")["pickle"])
    with pytest.raises(DataMissing, match="data_batch_4 is not read"):
        dataset.load()
    assert not (tmp_path / "ran").exists()


def members(target: Path) -> dict[str, tarfile.TarInfo]:
    """Return members of an archive that would be written elsewhere, or that lead elsewhere."""
    batch = "cifar-10-batches-py/data_batch_1"
    made = {
        "absolute": tarfile.TarInfo(str(target)),
        "above": tarfile.TarInfo(f"cifar-10-batches-py/../../../{target.name}"),
        "link": tarfile.TarInfo(batch),
        "hard link": tarfile.TarInfo(batch),
        "folder": tarfile.TarInfo("cifar-10-batches-py"),
        "device": tarfile.TarInfo(batch),
    }
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "folder": tarfile.SYMTYPE,
        "device": tarfile.FIFOTYPE,
    }
    for name, kind in kinds.items():
        made[name].type = kind
        made[name].linkname = str(target.parent / "secret")
    return made


@pytest.mark.parametrize("member", members(Path("/x")))
def test_no_archive_writes_outside_of_its_folder(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it has the official checksum: only the official batches are taken, by their names."""
    (tmp_path / "secret").mkdir()
    made, data = tmp_path / "made", tmp_path / "a" / "b" / "data"
    official(made, monkeypatch)
    data.mkdir(parents=True)
    file = data / "cifar-10-python.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.addfile(members(tmp_path / "ran")[member])
        if member in ("absolute", "above", "folder"):
            tar.add(made / "cifar-10-batches-py", "cifar-10-batches-py")
    count_as_official(file, monkeypatch)
    dataset = make("cifar10", data)
    if member in ("absolute", "above", "folder"):
        dataset.fetch()
        assert sorted(path.name for path in data.iterdir()) == ["cifar-10-batches-py", file.name]
        assert not any(path.is_symlink() for path in data.rglob("*"))
    else:
        with pytest.raises(
            DataMissing, match=r"could not be unpacked .cifar-10-python.tar.gz does not hold the offici"
        ):
            dataset.fetch()
        assert [path.name for path in data.iterdir()] == [file.name], "nothing half done is left"
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "secret").iterdir())
    assert not (tmp_path / "a" / "ran").exists()


# ------------------------------------------------------------------------------------------------- shared machines


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private.private_folder.cache_clear()
    yield tmp_path
    private.private_folder.cache_clear()


def test_a_private_folder_is_one_s_own(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private.private_folder("x")
    assert folder == temporary / f"x-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    private.private_folder.cache_clear()
    assert private.private_folder("x") == folder, "it is used again"


@pytest.mark.parametrize("planted", ["open to all", "a link", "a file", "of another user"])
def test_a_private_folder_that_another_could_have_made_is_not_used(
    planted: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = temporary / f"x-{os.getuid()}"
    if planted == "open to all":
        there.mkdir()
        there.chmod(0o777)
    elif planted == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        there.symlink_to("elsewhere")
    elif planted == "a file":
        there.write_text("")
    else:
        there.mkdir(mode=0o700)
        others = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: others)
        there.rename(temporary / f"x-{others}")
        there = temporary / f"x-{others}"
    folder = private.private_folder("x")
    assert folder != there and folder.parent == temporary and folder.stat().st_mode & 0o777 == 0o700
    assert private.private_folder("x") == folder, "one for each process"


def test_plug_ins_are_unpacked_where_nobody_else_can_have_placed_them(temporary: Path) -> None:
    """A worker imports what lies there."""
    code = (
        "from pathlib import Path\nfrom harness import registry\n"
        "registry.unpack(registry.Luggage({'x': 'harness_plugins_x'}, {'harness_plugins_x/a.py': b'y = 1'}))\n"
        "import harness_plugins_x.a as a\nprint(a.y, Path(a.__file__).parent.parent)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}

    def unpacked() -> Path:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        value, _, folder = done.stdout.strip().partition(" ")
        assert value == "1"
        return Path(folder)

    folder = unpacked()
    assert folder.parent == temporary / f"harness-plugins-{os.getuid()}" and folder == unpacked()
    folder.parent.chmod(0o777)
    (folder / "harness_plugins_x" / "a.py").write_text("y = 2")
    assert unpacked() != folder


def test_compiled_code_is_kept_where_nobody_else_can_have_placed_it(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.networks import compiling

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "x")  # so that what is set below is undone
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling.compiled.cache_clear()
    compiling.compiled(len)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(temporary / f"torchinductor-{os.getuid()}")
