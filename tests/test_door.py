"""The door: plug-ins from outside the harness, configs by name, and the wheel."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import harness
import harness.check
from harness import registry
from harness.config.load import config_path, load_config
from harness.errors import UserError
from harness.list import main as list_plugins
from harness.run import main

ROOT = Path(__file__).resolve().parent.parent
ACQUISITION = '''
"""Selects the images with the highest squared probabilities."""
from harness import Acquisition, Batch
{more}

class Squared(Acquisition):
    """Ranks by the sum of squared probabilities, lowest first."""

    class Settings(Acquisition.Settings):
        power: int = 2

    def describe(self, network, batch: Batch, prepared):
        return {{"score": -(network(batch.images).logits.softmax(1) ** self.settings.power).sum(1)}}
'''
CONFIG = {
    "dataset": {"name": "digits", "limit": 120, "test_limit": 40},
    "model": {"name": "resnet_small", "width": 4},
    "recipe": {"epochs": 1, "batch_size": 16},
    "protocol": {"initial": 20, "budget": 10, "cycles": 2, "start": "warm"},
    "methods": {"Own": {"acquisition": "squared"}, "Ran": "random"},
    "seeds": [0],
    "where": {"trials": "in_process"},
}


def written(folder: Path, **changes: object) -> Path:
    """Write the config into a folder; return its path."""
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))
    return path


def plugin(folder: Path, name: str = "squared.py", more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(ACQUISITION.format(more=more))
    return folder / name


@pytest.mark.long
@pytest.mark.parametrize("entry", ["own", "own/squared.py"])
def test_a_folder_or_file_of_plug_ins_is_used(tmp_path: Path, entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    plugin(tmp_path / "own", more="from ._shared import NUMBER")
    (tmp_path / "own" / "_shared.py").write_text("NUMBER = 1\n")
    config = written(tmp_path, plugins=[entry])
    assert main([str(config), f"where.output={tmp_path / 'run'}"]) == 0
    assert "Own" in capsys.readouterr().out
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["plugins"] == [str(tmp_path / entry)]
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again.suites[0].methods["Own"][1].settings.model_dump() == {"power": 2}


def test_plug_ins_are_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative to the current folder, like every path on a command line."""
    plugin(tmp_path / "here" / "own")
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(written(tmp_path)), "plugins=[own]", "--plan"]) == 0
    assert "Plan of own" in capsys.readouterr().out


def test_a_list_names_what_it_can_not_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "drawn.py").write_text(
        "from harness import Dataset\n\n\nclass Drawn(Dataset):\n    def labels(self, split):\n        return split\n"
    )
    assert list_plugins(["--plugins", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "your methods\n  squared  (acquisition; images and label maps)" in printed
    assert "your datasets\n  drawn" in printed
    assert "'broken' can't be imported: broken.py:1: ZeroDivisionError: division by zero" in " ".join(printed.split())


def test_a_module_of_a_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path / "own_package")
    (tmp_path / "own_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    method = {"acquisition": {"name": "own_package.squared", "power": 3}}
    config = written(tmp_path, methods={"Own": method})
    assert main([str(config), f"where.output={tmp_path / 'run'}"]) == 0
    (trial, *_) = (tmp_path / "run" / "trials").iterdir()
    assert "own_package.squared" in trial.name


def test_a_list_names_an_entry_point_without_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "installed", lambda folder: {"lost": "no_such_file"} if folder == "methods" else {})
    assert list_plugins([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "can't be imported method 'lost': there is no module 'no_such_file'" in printed


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "harness.list",
        "harness.run --schema",
        "harness.run quickstart --plan",
        "harness.run quickstart --check-data",
        "harness.check random",
    ],
)
def test_a_pipe_that_nobody_reads_ends_quietly(command: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(
        words,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
@pytest.mark.parametrize("trials", ["in_process", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_run_goes_on_when_nobody_reads_what_it_prints(trials: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    config = written(tmp_path, methods={"Ran": "random"})
    words = [sys.executable, "-m", "harness.run", str(config), f"where.output={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words.append(f"where.trials={trials}")
    assert subprocess.run(words, stdout=write, stderr=write, env=environment).returncode == 0
    for command in ("report", "status"):
        words = [sys.executable, "-m", f"harness.{command}", str(tmp_path / "run")]
        assert subprocess.run(words, stdout=write, stderr=write, env=environment).returncode == 0
    os.close(write)
    assert list(harness.load(tmp_path / "run")["cycle"]) == [0, 1]


def test_an_entry_point_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, "own_file.py")
    info = tmp_path / "own_file-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own_file\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.methods]\nnamed = own_file\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.installed.cache_clear()
    try:
        config = written(tmp_path, methods={"Own": {"acquisition": "named"}})
        assert load_config(config).suites[0].methods["Own"][1].name == "named"
    finally:
        registry.installed.cache_clear()


@pytest.mark.parametrize(
    ("files", "changes", "sentence"),
    [
        ({}, {"plugins": "own"}, "own.yaml:1: plugins: must be a list of folders or .py files, got 'own'"),
        ({}, {"plugins": ["absent"]}, "plugins.0: {folder}/absent does not exist; give a folder of .py files, or one"),
        ({"own/_x.py": ""}, {"plugins": ["own"]}, "{folder}/own has no .py files without a leading underscore"),
        ({"own/epmcm.py": ""}, {"plugins": ["own"]}, "epmcm.py: the harness has a method 'epmcm'; rename the file"),
        ({"a/x.py": "", "b/x.py": ""}, {"plugins": ["a", "b"]}, "another plug-in has the name 'x'; rename one of the"),
        (
            {"own/squared.py": "import nowhere"},
            {"plugins": ["own"]},
            "can't be imported: squared.py:1: No module",
        ),
        ({"own/squared.py": "\nx = ("}, {"plugins": ["own"]}, "can't be imported: squared.py:2: SyntaxError"),
        ({"own/squared.py": "\n\n1 / 0"}, {"plugins": ["own"]}, "squared.py:3: ZeroDivisionError: division by zero"),
        (
            {"own/squared.py": ""},
            {"plugins": ["own"]},
            "'squared' is not an acquisition: no class in squared.py:1 is",
        ),
        (
            {"own/squared.py": "from harness import Acquisition\nclass A(Acquisition): ...\nclass B(Acquisition): ..."},
            {"plugins": ["own"]},
            "squared (squared.py:3) has 2 classes of Acquisition, A and B; allowed: one in each file",
        ),
        ({"own/squared.py": "raise SystemExit(3)"}, {"plugins": ["own"]}, "squared.py:1: SystemExit: 3"),
        (
            {"own/squared.py": "from harness import Aquisition"},
            {"plugins": ["own"]},
            "squared.py:1: harness has no 'Aquisition'; did you mean 'Acquisition'",
        ),
        (
            {"own/broken.py": "1 / 0"},
            {"plugins": ["own"], "methods": {"Own": "ranom"}},
            "unknown acquisition 'ranom'; did you mean 'random'",
        ),
        (
            {"own/squared.py": ""},
            {"methods": {"Own": "own/squared.py"}},
            "'own/squared.py' is a path; a plug-in goes by the name of its file, 'squared', with its folder in plugins",
        ),
        ({}, {}, "unknown acquisition 'squared'"),
        ({}, {"methods": {"Own": "no_package.badge"}}, "there is no module 'no_package'; it must be installed, or lie"),
        ({}, {"methods": {"Own": "json.decoder"}}, "'json.decoder' is not an acquisition: no class in decoder.py:"),
    ],
)
def test_a_wrong_plug_in_is_one_sentence(
    tmp_path: Path,
    files: dict[str, str],
    changes: dict[str, object],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    first = {"plugins": changes["plugins"]} if "plugins" in changes else {}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**first, **CONFIG, **changes}, sort_keys=False))
    assert main([str(tmp_path / "own.yaml"), f"where.output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and sentence.format(folder=tmp_path) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"Own": "Squared"}}, "unknown acquisition 'Squared'; did you mean 'squared'? allowed: ads, "),
        ({"methods": {"Own": {"acquisition": "random", "training": "x"}}}, "unknown training 'x'; allowed: ads, "),
        ({"dataset": "x"}, "unknown dataset 'x'; allowed: cifar10, "),
        ({"model": "qqq"}, "unknown network 'qqq'; allowed: drn_c_26, "),
    ],
)
def test_an_unknown_name_is_answered_with_those_of_the_users_files(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    plugin(tmp_path / "own")
    (tmp_path / "own" / "broken.py").write_text("1 / 0")
    (tmp_path / "own" / "empty.py").touch()
    with pytest.raises(UserError) as refused:
        load_config(written(tmp_path, plugins=["own"], **changes))
    assert words in str(refused.value)
    own = "broken (broken.py:1: ZeroDivisionError: division by zero), empty (no class in empty.py:1), squared ("
    assert f"; a plug-in goes by the name of its file, yours are: {own}" in str(refused.value)
    assert re.search(r"squared \(Squared in squared\.py:\d+\)$", str(refused.value))


def test_a_check_of_a_class_name_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin(tmp_path / "own")
    assert harness.check.main(["Squarred", "--plugins", str(tmp_path / "own")]) == 2
    assert "a plug-in goes by the name of its file, yours are: squared (Squared in " in capsys.readouterr().err


def test_a_file_in_the_current_folder_is_pointed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"to use squared\.py, add its folder to the config: plugins: \[FOLDER\]"):
        load_config(written(tmp_path))


def test_plug_ins_are_unpacked_on_another_machine(tmp_path: Path) -> None:
    """A new process, which can't see the folder, reads a pickled trial."""
    plugin(tmp_path / "own", more="from ._shared import NUMBER")
    (tmp_path / "own" / "_shared.py").write_text("NUMBER = 1\n")
    (suite,) = load_config(written(tmp_path, plugins=["own"])).suites
    trials = [trial for _, trial in suite.trials()]
    (tmp_path / "luggage").write_bytes(pickle.dumps((registry.luggage(), pickle.dumps(trials))))
    (tmp_path / "own").rename(tmp_path / "gone")
    code = (
        "import pickle, sys\nfrom harness import registry, Acquisition\n"
        "plugins, trials = pickle.load(open(sys.argv[1], 'rb'))\nregistry.unpack(plugins)\n"
        "trial = pickle.loads(trials)[0]\nregistry.find('methods', trial.acquisition.name, Acquisition)\n"
        "assert registry.luggage() == plugins\nprint(trial.id, trial.acquisition.settings.power)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "luggage")], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == [trials[0].id, "2"], done.stderr


@pytest.mark.long
@pytest.mark.ray
def test_plug_ins_run_on_ray_and_ray_data(tmp_path: Path) -> None:
    """The workers find a folder, and a package that only the driver has on its path, with the same results."""
    plugin(tmp_path / "own", more="from ._shared import NUMBER")
    (tmp_path / "own" / "_shared.py").write_text("NUMBER = 1\n")
    plugin(tmp_path / "hidden" / "own_package")
    (tmp_path / "hidden" / "own_package" / "__init__.py").write_text("")
    methods = {
        "Folder": {"acquisition": "squared"},
        "Package": {"acquisition": {"name": "own_package.squared", "power": 3}},
    }
    config = written(tmp_path, plugins=["own"], methods=methods)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from harness.run import main; sys.exit(main(sys.argv[1:]))"
    selected = {}
    for scoring in ("in_process", "ray_data"):
        trials = "in_process" if scoring == "in_process" else "ray"
        words = [f"where.output={tmp_path / scoring}", f"where.scoring={scoring}", f"where.trials={trials}"]
        words += ["where.dashboard=false"]
        command = [sys.executable, "-c", code, str(tmp_path / "hidden"), str(config), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        table = harness.load(tmp_path / scoring)
        selected[scoring] = {(r.method, r.cycle): r.selected for r in table.itertuples()}
        assert len(table) == 4
    assert selected["in_process"] == selected["ray_data"]


def test_the_harness_itself_is_not_sent_to_the_workers(tmp_path: Path) -> None:
    (suite,) = load_config(written(tmp_path, methods={"Own": "harness.methods.entropy"})).suites
    assert suite.methods["Own"][1].name == "harness.methods.entropy"
    assert registry.luggage() == registry.Luggage()


def test_a_config_of_the_harness_is_found_by_name() -> None:
    assert config_path("quickstart") == ROOT / "configs" / "quickstart.yaml"
    with pytest.raises(UserError, match="there is no file and no config 'quikstart'; did you mean 'quickstart'"):
        config_path("quikstart")
    assert config_path("runs/absent.yaml") == Path("runs/absent.yaml")


@pytest.mark.long
def test_a_wheel_plans_the_quickstart_in_a_clean_environment(tmp_path: Path) -> None:
    """The wheel installs one top-level package, also next to a foreign package ``datasets`` that is imported first."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.split("\n"):
        if name and not name.startswith(("tests/", "docs/", "results/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"harness"}
    expected = {f"harness/{p.relative_to(ROOT / 'harness')}" for p in (ROOT / "harness").rglob("*.py")}
    expected |= {f"harness/report/page/{p.name}" for p in (ROOT / "harness" / "report" / "page").iterdir()}
    kinds = (".py", ".yaml", ".csv")
    for folder in ("methods", "datasets", "configs", "published"):
        expected |= {f"harness/{folder}/{p.name}" for p in (ROOT / folder).iterdir() if p.suffix in kinds}
    assert inside == expected

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "datasets").mkdir()
    (packages / "datasets" / "__init__.py").write_text("FOREIGN = True\n")
    # dependencies only: the .pth of an editable harness inside this folder is not read
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import sys, datasets; assert datasets.FOREIGN; import harness; from harness.run import main; "
        "assert 'venv' in harness.__file__, harness.__file__; "
        "from harness.report.published import published; assert published('cifar10', 'resnet18_cifar'); "
        "sys.exit(main(['quickstart', '--plan']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Plan of quickstart" in done.stdout
