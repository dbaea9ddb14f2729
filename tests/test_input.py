"""Input as users write it: YAML's corners, names, paths, folders and files of wrong kinds, platforms, command lines."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_datasets import write_tree

import harness
import harness.check
import harness.list
import harness.replay
import harness.report.__main__
import harness.run
import harness.status
from harness import registry
from harness.config.load import load_config
from harness.data import host, prepared, remembered, rows
from harness.data.dataset import DataRoot
from harness.errors import DataMissing, UserError, answered, check_platform, expanded, readable
from harness.experiment import grid
from harness.learning import process

CONFIG = """\
dataset: digits
model: {name: resnet_small, width: 4}
recipe: {epochs: 2}
protocol: {initial: 20, budget: 10, cycles: 3, start: warm}
methods: {Ran: random, LC: least_confidence}
seeds: [0]
where: {trials: in_process}
"""
Answer = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, in which the test's working folder lies."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Run a command line; return its exit code and what it writes to stderr, or to stdout if it succeeds."""

    def run(*arguments: str, command: Callable[[list[str]], int] = harness.run.main) -> tuple[int, str]:
        code = command([*arguments])
        printed = capsys.readouterr()
        if code:
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
        return code, (printed.err or printed.out).strip()

    return run


def refused(text: str | bytes, *overrides: str) -> str:
    """Return the sentence with which a config is refused."""
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_config("c.yaml", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ YAML


def test_merge_keys_give_what_a_mapping_does_not_set_itself() -> None:
    Path("c.yaml").write_text(
        "x-short: &short {epochs: 3, gamma: 0.5}\nx-big: &big {batch_size: 64, gamma: 0.25}\n"
        + CONFIG.replace("{epochs: 2}", "{<<: [*short, *big], epochs: 5}")
    )
    recipe = load_config("c.yaml").suites[0].recipe
    assert (recipe.epochs, recipe.gamma, recipe.batch_size) == (5, 0.5, 64), (
        "own before merged, the first before others"
    )


def test_a_mistake_in_a_merged_mapping_is_at_its_own_line() -> None:
    text = "x-short: &short\n  epohs: 3\n" + CONFIG.replace("{epochs: 2}", "{<<: *short, epochs: 2}")
    assert refused(text).startswith("c.yaml:2: recipe.epohs: unknown key 'epohs'; did you mean 'epochs'?")
    assert refused(CONFIG.replace("{epochs: 2}", "{<<: 3}")).startswith("c.yaml:3: recipe.<<: must be a mapping or a")


BOMB = "\n".join(["x-0: &x0 [1, 1]", *(f"x-{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 10))])
MERGED = "\n".join(["x-0: &x0 {a: 1}", *(f"x-{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, r"c\.yaml:\d+: a config has at most 20000 values"),
        (MERGED, r"c\.yaml:\d+: a config has at most 20000 values"),
        ("x-a: &a [*a]\n" + CONFIG, r"c\.yaml:1: not valid YAML: values are nested too deeply"),
        ("x-a: &a {<<: *a}\n" + CONFIG, r"c\.yaml:1: not valid YAML: values are nested too deeply"),
        ("[" * 5000, r"c\.yaml:1: not valid YAML: values are nested too deeply"),
        ("- " * 5000, r"c\.yaml:1: not valid YAML: values are nested too deeply"),
        (CONFIG + "title: !!python/object:os.system {a: 1}\n", r"c\.yaml:8: title: the tag .* is not allowed"),
        (CONFIG + "title: !!python/name:os.system\n", r"c\.yaml:8: not valid YAML: could not determine a constructor"),
        (CONFIG + "title: !!binary aGk=\n", r"c\.yaml:8: title: binary values are not allowed"),
        (CONFIG + 'title: "a\\x1b[31m"\n', r"c\.yaml:8: title: must be printable text, got 'a\\x1b\[31m'"),
        (CONFIG + 'title: "\\uD800"\n', r"c\.yaml:8: title: must be printable text"),
        (CONFIG.replace("Ran:", '"R\\n":'), r"c\.yaml:5: methods\.R\\n: a key must be printable text, got 'R\\n'"),
        (
            CONFIG.replace("epochs: 2", f"epochs: {'9' * 10**5}"),
            r"c\.yaml:3: recipe\.epochs: must be a number of at most",
        ),
        (CONFIG.replace("epochs: 2", f"epochs: 0x{'9' * 10**5}"), r"c\.yaml:3: recipe\.epochs: must be a number of at"),
        (CONFIG.replace("epochs: 2", "epochs: 1:30"), r"c\.yaml:3: recipe\.epochs: must be a whole number, got '1:30'"),
        (CONFIG.replace("epochs: 2", "epochs: 010"), r"c\.yaml:3: recipe\.epochs: must be a whole number, got '010'"),
        (CONFIG.replace("epochs: 2", "epochs: 2024-13-01"), r"c\.yaml:3: recipe\.epochs: '2024-13-01' can't be read"),
        (CONFIG.replace("epochs: 2", "epochs: 2, epochs: 3"), r"c\.yaml:3: recipe\.epochs: this key appears twice"),
        (b"\xff\xfe" + CONFIG.encode("utf-16-le"), r"c\.yaml:1: can't be read: not UTF-8"),
        (CONFIG.encode() + b"title: \xe9\n", r"c\.yaml:8: can't be read: not UTF-8"),
        ("x-a: [" + "1, " * 300000 + "]", r"c\.yaml:1: not valid YAML: a config has at most 20000 values"),
        ("# " + "x" * 10**6, r"c\.yaml: a config has at most 1000000 bytes"),
        ("", r"c\.yaml:1: a config is a mapping of keys .* the file is empty"),
    ],
)
def test_a_corner_of_yaml_is_one_line(text: str | bytes, sentence: str) -> None:
    assert re.match(sentence, refused(text))


def test_a_mark_at_the_beginning_of_a_file_is_read_over() -> None:
    Path("c.yaml").write_bytes(b"\xef\xbb\xbf" + CONFIG.encode())
    assert load_config("c.yaml").suites[0].recipe.epochs == 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("recipe.epochs=1:30", "must be a whole number, got '1:30'"),
        ("model={width: 4, width: 8}", "width: this key appears twice"),
        ("title=!!python/name:os.system", "not valid YAML: could not determine a constructor"),
        ("seeds=2024-13-01", "'2024-13-01' can't be read: month must be in 1..12"),
        ("title=" + "x" * 10**4, "must be at most 200 characters long"),
    ],
)
def test_overrides_are_read_by_the_rules_of_a_config(override: str, problem: str) -> None:
    shown = override if len(override) < 60 else override[:57] + "..."
    assert refused(CONFIG, override).startswith(f"{shown} (command line): {problem}")


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a ", "x" * 101])
def test_names_have_a_length(name: str) -> None:
    line = refused(CONFIG.replace("Ran:", f"{json.dumps(name)}:"))
    assert line.startswith(f"c.yaml:5: methods.{name}: the name of a method must have 1 to 100 characters")
    text = f"suites:\n  {json.dumps(name)}: {{}}\n" + CONFIG
    assert refused(text).startswith(f"c.yaml:2: suites.{name}: the name of a suite must have 1 to 100 characters")


EMPTY = "the name of an entry is empty; it must have at least one character"


@pytest.mark.parametrize("name", ['""', "' '"])
@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("Ran: ", "{}: ", "c.yaml:5: methods"),
        ("epochs: 2", "epochs: 2, {}: 2", "c.yaml:3: recipe"),
        ("seeds: [0]", "{}: [0]", "c.yaml:6"),
        ("seeds: [0]", "seeds: [0]\nsuites: {{{}: {{}}}}", "c.yaml:7: suites"),
        ("seeds: [0]", "seeds: [0]\nsuites: {{a: {{methods: {{{}: random}}}}}}", "c.yaml:7: suites.a.methods"),
    ],
)
def test_an_empty_name_is_said_to_be_empty(old: str, new: str, place: str, name: str) -> None:
    assert refused(CONFIG.replace(old, new.format(name))) == f"{place}: {EMPTY}"


def test_an_empty_name_in_an_override_is_said_to_be_empty() -> None:
    assert refused(CONFIG, 'methods={"": random}') == f'methods={{"": random}} (command line): {EMPTY}'


@pytest.mark.parametrize("name", ["''", "x" * 101])
@pytest.mark.parametrize("old", ["digits", "resnet_small", "least_confidence"])
def test_names_of_plug_ins_have_a_length(old: str, name: str) -> None:
    assert "must be a name of 1 to 100 characters, got '" in refused(CONFIG.replace(old, name))


def test_an_id_is_the_name_of_a_folder_however_long_names_are(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = next(load_config("c.yaml").suites[0].trials())[1]
    long = type(trial)(**{**vars(trial), "dataset": type(trial.dataset)("d" * 300, trial.dataset.settings)})
    other = type(trial)(**{**vars(trial), "dataset": type(trial.dataset)("d" * 301, trial.dataset.settings)})
    assert len(long.id.encode()) <= 255 and long.id != other.id and long.id.endswith(long.id.split(".")[-1])


def test_a_filter_may_name_a_method_with_a_comma(answer: Answer) -> None:
    Path("c.yaml").write_text(CONFIG.replace("Ran:", "'a, b':"))
    assert "1 x 1 = 1" in answer("c.yaml", "--plan", "--only", "method=a, b")[1]


def test_too_many_cycles_in_all_are_refused() -> None:
    seeds = ", ".join(map(str, range(1000)))
    line = refused(CONFIG.replace("seeds: [0]", f"seeds: [{seeds}]").replace("cycles: 3", "cycles: 1000"))
    assert line.startswith("c.yaml:4: protocol.cycles: the config's methods x seeds x cycles must be at most 100000 (")


# -------------------------------------------------------------------------------------------------- command lines


def test_an_override_after_only_is_an_override(answer: Answer) -> None:
    arguments = ["--only", "method=Ran", "recipe.epochs=7", "seeds=[3, 4]", "seed=3", "where.shards=5"]
    code, printed = answer("c.yaml", "--plan", *arguments)
    assert code == 0 and "1 x 1 = 1" in printed and "5 workers" in printed
    assert f"{(20 + 30 + 40) * 7:,}" in printed, "passes of seven epochs"
    assert answer("--plan", "--only", "method=Ran", "c.yaml")[0] == 0, "the config, too"


@pytest.mark.parametrize("words", [["--plan"], ["where.output=out"]])
def test_more_threads_than_cores_in_one_process_are_refused(
    answer: Answer, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "processors", lambda: 2)
    assert answer("c.yaml", *words, "where.cpus_per_trial=3") == (
        2,
        "error: where.cpus_per_trial: must be at most 2, the number of cores of this machine that a process may use, "
        "with where.trials: in_process, got 3; set where.cpus_per_trial=2",
    )
    assert not Path("out").exists()
    assert answer("c.yaml", "--plan", "where.cpus_per_trial=2")[0] == 0
    on_cluster = ("where.trials=ray", "where.address=head:6379")
    assert answer("c.yaml", "--plan", "where.cpus_per_trial=3", *on_cluster)[0] == 0, "its cores are not this machine's"


def test_a_misspelt_filter_is_named(answer: Answer) -> None:
    assert answer("c.yaml", "--plan", "--only", "methd=Ran")[1].startswith(
        "error: --only methd=Ran: write suite=..., dataset=..., method=... or seed=...; did you mean 'method'?"
    )


COMMANDS = ["run", "check", "list", "report.__main__", "status", "prepare", "replay", "tracking.__main__"]


@pytest.mark.parametrize("words", [["--nonsense"], ["--nonsense=3"], ["x", "y", "--nonsense"], ["--nonsense", "x"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_an_unknown_option_before_what_is_missing(
    answer: Answer, command: str, words: list[str]
) -> None:
    main = importlib.import_module(f"harness.{command}").main
    code, printed = answer(*words, command=lambda given: answered(lambda: main(given)))
    assert code == 2 and printed.startswith("error: unknown option '--nonsense'; ") and "allowed: --" in printed


def test_a_misspelt_option_of_the_report_is_corrected(answer: Answer) -> None:
    told = answer("--outptu", "x", command=harness.report.__main__.main)
    assert told == (2, "error: unknown option '--outptu'; did you mean '--output'? allowed: --help, --output")


def test_report_answers_usage_errors_in_one_sentence(answer: Answer) -> None:
    report = harness.report.__main__.main
    needed = "error: the following arguments are required: RUN_DIR; --help lists the options"
    assert answer(command=report) == (2, needed)


def test_an_error_without_text_has_a_name() -> None:
    assert str(DataMissing()) == "DataMissing" and str(DataMissing("x")) == "x"


def test_control_characters_of_a_message_are_written_out(answer: Answer) -> None:
    assert answer("a\x1b[31mb")[1].startswith("error: ") and "\x1b" not in answer("a\x1b[31mb")[1]
    assert readable("a\x1b[31m\u202eb\nc é 漢 👩‍🔬") == "a\\x1b[31m\\u202eb\\nc é 漢 👩‍🔬"


# ----------------------------------------------------------------------------------------------------------- paths


def test_the_home_folder_is_expanded_wherever_a_path_is_given(
    home: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "own").mkdir()
    (home / "own" / "mine.py").write_text("import harness\nclass Mine(harness.Acquisition):\n    pass\n")
    (home / "data" / "set" / "train" / "a").mkdir(parents=True)
    Path("c.yaml").rename(home / "c.yaml")
    benchmark = load_config("~/c.yaml", ["where.output=~/runs/x", "where.data=~/data", "plugins=[~/own]"])
    assert benchmark.output == home / "runs" / "x" and "mine" in registry.names("methods")
    assert DataRoot.of("~/data", False).root == home / "data"
    (home / "c.yaml").write_text(CONFIG + "plugins: [~/own]\n")
    assert load_config("~/c.yaml").plugins == [str(home / "own")]
    folder = {"name": "image_folder", "folder": "~/data/set", "image_size": 8}
    with pytest.raises(DataMissing, match=re.escape(f"{home / 'data' / 'set'} has no folder test/")):
        harness.load_dataset(folder)
    maps = {"name": "segmentation_folder", "folder": "~/data/set", "classes": ["a", "b"]}
    with pytest.raises(DataMissing, match=re.escape(f"{home / 'data' / 'set'}")):
        harness.load_dataset(maps)
    with pytest.raises(UserError, match=r"'~/none\.pt' can't be read: No such file"):
        load_config("~/c.yaml", ["model.weights=~/none.pt"])
    (home / "none.pt").write_bytes(b"x")
    digest = load_config("~/c.yaml", ["model.weights=~/none.pt"]).suites[0].model.settings.weights_sha256
    assert digest == hashlib.sha256(b"x").hexdigest()
    assert answer("methods", "--plugins", "~/own", command=harness.list.main)[0] == 0
    (home / "runs" / "x").mkdir(parents=True)
    code, printed = answer("~/runs/x", command=harness.report.__main__.main)
    assert code == 2 and printed.startswith(f"error: {home / 'runs' / 'x'}: not the results folder of a run")
    with pytest.raises(UserError, match=re.escape(f"{home / 'runs' / 'x'}: not the results folder")):
        harness.load("~/runs/x")
    monkeypatch.setenv("HARNESS_CACHE", "~/cache")
    assert remembered.cache_folder() == home / "cache"
    kept = prepared.place("~/kept")
    assert kept is not None and kept.folder == home / "kept"
    replay = harness.replay.main
    code, printed = answer("~/runs/x", command=harness.status.main)
    assert code == 2 and str(home / "runs" / "x") in printed
    code, printed = answer("~/runs/x", "--export", "~/sets", command=replay)
    assert code == 2 and str(home / "runs" / "x") in printed
    code, printed = answer("~/c.yaml", "--indices", "~/none.csv", command=replay)
    assert code == 2 and str(home / "none.csv") in printed
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "arguments",
    [["~nobodyx/c.yaml"], ["c.yaml", "where.output=~nobodyx/a"], ["c.yaml", "where.data=~nobodyx/a"]],
)
def test_a_home_folder_that_is_not_there_is_a_sentence(answer: Answer, arguments: list[str]) -> None:
    assert "there is no home folder ~nobodyx" in answer(*arguments, "--plan")[1]
    for key in ("output", "data", "prepared"):
        code, printed = answer("c.yaml", f"where.{key}=~nobodyx/it", "--plan")
        said = f"where.{key}=~nobodyx/it (command line): ~nobodyx/it: there is no home folder ~nobodyx"
        assert code == 2 and printed == f"error: {said}"
    with pytest.raises(UserError):
        expanded("~nobodyx/a")


# ------------------------------------------------------------------------------------------ files and folders


def a_folder(path: str) -> None:
    Path(path).mkdir(parents=True)


def a_file(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("x")


@pytest.mark.parametrize(
    ("make", "path", "arguments", "sentence"),
    [
        (a_folder, "d.yaml", ["d.yaml"], "d.yaml: is a folder; a config is a YAML file"),
        (a_file, "out", ["c.yaml", "where.output=out"], "where.output: out can't be "),
        (a_file, "out", ["c.yaml", "where.output=out/in/side"], "where.output: out/in/side can't be "),
        (
            a_folder,
            "out/run.json",
            ["c.yaml", "where.output=out"],
            "where.output: out/run.json is a folder, where a run",
        ),
        (a_file, "out/trials", ["c.yaml", "where.output=out"], "where.output: out/trials is a file, where a run has"),
        (a_file, "out/shared", ["c.yaml", "where.output=out"], "where.output: out/shared is a file, where a run has"),
        (a_file, "out/report", ["c.yaml", "where.output=out"], "where.output: out/report is a file, where a run has"),
        (a_file, "data", ["c.yaml", "where.data=data"], "where.data: data is a file; it must be the folder that holds"),
        (a_file, "x", ["c.yaml", "where.output=" + "x" * 300], "where.output: "),
        (a_file, "x", ["c.yaml", "where.data=" + "x" * 300], "where.data: "),
        (a_file, "x", ["x" * 300], "x" * 200 + ": can't be read: File name too long"),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_a_file_in_place_of_a_folder_is_a_sentence_and_the_other_way_round(
    answer: Answer, make: Callable[[str], None], path: str, arguments: list[str], sentence: str, planned: bool
) -> None:
    make(path)
    code, printed = answer(*arguments, *(["--plan"] if planned else []))
    assert code == 2 and printed.startswith(f"error: {sentence}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_plan_notices_a_folder_that_it_may_not_write_to(answer: Answer) -> None:
    Path("out").mkdir(mode=0o500)
    assert "can't be written to" in answer("c.yaml", "where.output=out/x", "--plan")[1]


def test_the_plan_asks_whether_the_nearest_folder_can_be_written_to(
    answer: Answer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: bool(asked.append(path)))
    assert answer("c.yaml", "where.output=a/b", "--plan")[1].startswith("error: where.output: a/b can't be written to")
    assert asked == [home / "work"] and not Path("a").exists()


def test_devices_and_pipes_are_no_configs(answer: Answer) -> None:
    os.mkfifo("pipe.yaml")
    assert answer("pipe.yaml", "--plan")[1] == "error: pipe.yaml: is not a regular file; a config is a YAML file"
    assert answer("/dev/zero", "--plan")[1].startswith("error: /dev/zero: is not a regular file")


def test_no_pipe_that_a_user_names_makes_a_command_wait(answer: Answer, at_once: None) -> None:
    os.mkfifo("pipe.pt")
    os.mkfifo("pipe.py")
    for path in ("pipe.pt", "/dev/zero"):
        code, printed = answer("c.yaml", f"model.weights={path}", "--plan")
        assert code == 2 and printed.endswith(f"{path!r} can't be read: it is a pipe or a device, not a file")
    for path in ("pipe.py", "pipe.pt", "/dev/zero", "/proc/self/mem", "c.yaml"):
        code, printed = answer("c.yaml", f"plugins=[{path}]", "--plan")
        assert code == 2 and printed.startswith(f"error: plugins=[{path}] (command line): plugins.0: /")
        assert printed.endswith(" is neither a folder nor a .py file; give a folder of .py files, or one .py file")


def test_a_plug_in_that_is_no_code_is_refused_before_it_is_read(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_added", {})
    Path("own").mkdir()
    Path("own", "binary.py").write_bytes(bytes(10))
    code, printed = answer("c.yaml", "plugins=[own]", "methods={A: binary}", "--plan")
    assert code == 2 and "method 'binary' can't be imported: binary.py:1: SyntaxError: source code " in printed
    os.truncate("own/binary.py", 3 * 10**9)
    for path in ("own", "own/binary.py"):
        code, printed = answer("c.yaml", f"plugins=[{path}]", "--plan")
        assert code == 2
        assert printed.endswith(
            "own/binary.py has 3000 MB, and a plug-in has at most 50 MB; keep data out of .py files"
        )


def test_a_package_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", {})
    a_file("plugins/own_kind.py")
    a_file("plugins/below/data.py")
    os.truncate("plugins/below/data.py", 3 * 10**9)
    registry.add(Path("plugins"))
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(UserError, match="the packages of the plug-ins have 3000 MB, and at most 50 MB are sent to"):
        registry.luggage()


def test_only_files_of_a_plugin_folder_travel(home: Path, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", {})
    a_file("plugins/own_kind.py")
    a_folder("plugins/folder.py")
    os.mkfifo("plugins/pipe.py")
    registry.add(Path("plugins"))
    assert [*registry._added] == ["own_kind"]
    assert [Path(name).name for name in registry.luggage().files if "plugins" in name] == ["own_kind.py"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "logs/ray.log"])
def test_what_is_no_file_in_the_place_of_one_of_a_run(
    name: str, make: Callable[[Path], None], answer: Answer, at_once: None
) -> None:
    path = Path("out", name)
    path.parent.mkdir(parents=True)
    make(path)
    kind = "folder" if make is Path.mkdir else "pipe or a device"
    for options in ([], ["--plan"], ["--resume"], ["--resume", "--plan"]):
        code, printed = answer("c.yaml", "where.output=out", *options)
        assert code == 2 and printed.endswith(f"{path} is a {kind}, where a run has a file; move it away")
    if name == "run.json":
        code, printed = answer("out", command=harness.report.__main__.main)
        assert code == 2 and printed.startswith("error: out/run.json: not the manifest of a run: ")


@pytest.mark.parametrize("name", ["cycle_001.json", "state_000.pt", "records.jsonl", "trial.json"])
def test_a_folder_in_the_place_of_a_file_of_a_trial(name: str, answer: Answer) -> None:
    path = Path("out", "trials", "x.s0", name)
    path.mkdir(parents=True)
    for options in ([], ["--plan"], ["--resume"]):
        code, printed = answer("c.yaml", "where.output=out", *options)
        assert code == 2 and printed.endswith(f"{path} is a folder, where a run has a file; move it away")


@pytest.mark.parametrize("store", ["trials", "shared"])
def test_a_link_to_another_trial_is_refused(store: str, answer: Answer) -> None:
    Path("out", store, "x.s0").mkdir(parents=True)
    (link := Path("out", store, "y.s0")).symlink_to("x.s0")
    for options in ([], ["--plan"], ["--resume"]):
        code, printed = answer("c.yaml", "where.output=out", *options)
        assert code == 2 and printed.endswith(f"{link} is a link to another trial, x.s0; remove the link")
    link.unlink()
    Path("elsewhere").mkdir()
    link.symlink_to(Path("elsewhere").absolute())
    assert answer("c.yaml", "where.output=out", "--plan")[0] == 0, "on another disk, for example"


def test_what_a_file_manager_adds_to_a_run_stops_nothing(answer: Answer) -> None:
    Path("out", "trials", "x.s0", "@eaDir").mkdir(parents=True)
    Path("out", "trials", ".DS_Store").touch()
    assert answer("c.yaml", "where.output=out", "--plan")[0] == 0


def test_the_report_says_what_is_in_the_place_of_the_trials(answer: Answer) -> None:
    Path("out").mkdir()
    Path("out", "run.json").write_text(json.dumps({"name": "n", "suites": [GOOD]}))
    Path("out", "trials").touch()
    code, printed = answer("out", command=harness.report.__main__.main)
    assert code == 2 and printed.endswith("out/trials is a file, where a run has a folder; move it away")
    Path("out", "run.json").write_text(json.dumps({"name": "n", "suites": [GOOD, GOOD]}))
    code, printed = answer("out", command=harness.report.__main__.main)
    assert code == 2 and printed.endswith("not the manifest of a run: the suite 's' occurs twice")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"settings": {"recipe": {"batch_size": -1}}}, "settings.recipe.batch_size: must be at least 2, got -1"),
        ({"settings": {"recipe": {"batch_size": "x"}}}, "settings.recipe.batch_size: must be a whole number, got 'x'"),
        ({"settings": {"protocol": {"initial": -3}}}, "settings.protocol.initial: must be at least 2, got -3"),
        ({"seeds": [-1]}, "seeds.0: must be at least 0, got -1"),
        ({"labelled": [-5]}, "labelled.0: must be at least 0, got -5"),
        ({"pool": -4}, "pool: must be at least 0, got -4"),
        ({"equal_within": -1.0}, "equal_within: must be above 0, got -1.0"),
        ({"primary": ["a"]}, 'primary: must be at least 2 long, got ["a"]'),
    ],
)
def test_the_report_names_an_impossible_value_of_run_json(change: dict[str, Any], problem: str, answer: Answer) -> None:
    Path("out").mkdir()
    Path("out", "run.json").write_text(json.dumps({"name": "n", "suites": [GOOD | change]}))
    code, printed = answer("out", command=harness.report.__main__.main)
    assert (code, printed) == (2, f"error: out/run.json: not the manifest of a run: suites.0.{problem}")
    Path("out", "run.json").write_text(json.dumps({"name": "n", "suites": [GOOD | {"settings": {"recipe": {"a": 1}}}]}))
    assert answer("out", command=harness.report.__main__.main)[0] == 0, "a key of another version"


@pytest.mark.parametrize("option", ["--resum", "--f", "--chec"])
def test_an_option_has_one_name(option: str, answer: Answer) -> None:
    code, printed = answer("c.yaml", option)
    assert code == 2 and f"unknown option {option!r}; did you mean" in printed


GOOD = {"name": "s", "title": "t", "dataset": "d", "model": "m", "recipe": "r", "methods": ["a"], "seeds": [0]}
GOOD |= {"labelled": [1], "trials": {}}


@pytest.mark.parametrize(
    "data",
    [
        *(text.encode() for text in ("", "1", "null", "true", '"x"', "[]", "[[]]", "{}", "[" * 10**5, '{"a":' * 10**5)),
        *(b"\xff", b"1" * 10**4, b"\x00", b'{"name": "\xff"}', b"{" * 10**6),
        *(
            json.dumps(values).encode()
            for values in (
                {"name": 3, "suites": []},
                {"name": "n", "suites": {}},
                {"name": "n", "suites": None},
                {"name": "n", "suites": [None]},
                {"name": "n", "suites": [], "schema_version": "2"},
                {"name": "n", "suites": [], "schema_version": [1]},
                {"name": "n", "suites": [], "schema_version": None},
                {"name": "n", "suites": [], "folders": 1},
                *({"name": "n", "suites": [{k: v for k, v in GOOD.items() if k != key}]} for key in GOOD),
                *({"name": "n", "suites": [GOOD | {key: 3.5}]} for key in GOOD),
                *({"name": "n", "suites": [GOOD | {key: [None]}]} for key in GOOD),
                {"name": "n", "suites": [GOOD | {"trials": {"x": {"method": "b", "seed": 0}}}]},
                *(
                    {"name": "n", "suites": [GOOD | {"trials": {trial: {"method": "a", "seed": 0}}}]}
                    for trial in ("", ".", "..", "../x", "/x", "a\0b", "\ud800", "x" * 256)
                ),
                {"name": "n", "suites": [GOOD | {"settings": {"protocol": 3}}]},
                {"name": "n", "suites": [], "schema_version": 0},
            )
        ),
    ],
)
def test_a_manifest_of_any_shape_is_a_sentence(answer: Answer, data: bytes) -> None:
    a_folder("out")
    Path("out/run.json").write_bytes(data)
    code, printed = answer("out", command=harness.report.__main__.main)
    assert code == 2 and re.match(r"error: out/run\.json: (not valid JSON|not the manifest of a run): ?", printed)
    assert len(printed) < 500 and not re.search("Input should|[Ff]ield required|codec|sys[.]", printed)
    if b"3.5" in data or (b"null" in data and not data.startswith(b"null")):
        assert re.search(
            r": (must be [\w ]+(, such as \[0, 1, 2\])?, got (3\.5|null|\[null\])|.* is required)", printed
        )


@pytest.mark.parametrize(
    ("path", "make", "first"), [("report", a_file, "records.csv"), ("report/report.md", a_folder, "report.md")]
)
def test_a_report_that_can_not_be_written_is_a_sentence(
    answer: Answer, path: str, make: Callable[[str], None], first: str
) -> None:
    make(f"out/{path}")
    Path("out/run.json").write_text(json.dumps({"name": "n", "suites": []}))
    code, printed = answer("out", command=harness.report.__main__.main)
    assert code == 2 and printed.startswith(f"error: out/report/{first}: can't be written: ")


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "make"),
    [("", a_file), ("/cycle_000.json", a_folder), ("/trial.json", a_folder), ("/state_000.pt", a_folder)],
)
def test_a_trial_that_can_not_be_written_fails_in_one_line_and_the_others_go_on(
    path: str, make: Callable[[str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["recipe.epochs=1", "dataset.limit=100", "dataset.test_limit=20", "protocol.cycles=2"]
    trial = next(load_config("c.yaml", overrides).suites[0].trials())[1]
    for check in ("check_places", "check_trials"):  # it comes between the check and the trial
        monkeypatch.setattr(harness.experiment.runner, check, lambda *_, **__: None)
    make(f"out/trials/{trial.id}{path}")
    assert harness.run.main(["c.yaml", *overrides, "where.output=out"]) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("FAILED: ")]
    assert len(failed) == 1 and "c / Ran / seed 0: out/trials/" in failed[0] and ": can't be written: " in failed[0]
    assert "LC" in (Path("out/report/c_accuracy.txt")).read_text()


# ------------------------------------------------------------------------------------------------------- platforms


def test_windows_is_refused_and_other_systems_get_a_note(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "error: the harness does not run on Windows; run it in WSL, the Windows Subsystem for Linux"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        for command in (harness.run, harness.check, harness.list, harness.report.__main__):
            assert answer("c.yaml", command=command.main) == (2, sentence)
    check_platform("darwin")
    assert capsys.readouterr().err == "note: the harness is tested on Linux, not on macOS\n"
    check_platform("linux")
    assert not capsys.readouterr().err


def test_free_memory_is_known_without_what_only_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_memory", lambda: None)
    expected = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert rows._free_memory(torch.device("cpu")) == expected
    monkeypatch.setattr(host, "free_memory", lambda: 123)
    assert rows._free_memory(torch.device("cpu")) == 123, "of the machine, or of the container's limit"


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_peak_memory_is_in_bytes_without_proc(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    import resource

    def missing(path: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    monkeypatch.setattr(sys, "platform", platform)
    process.reset_peak_memory(torch.device("cpu"))
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert process.peak_memory(torch.device("cpu"))["host"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("data", ["drawn", "files"])
def test_a_run_goes_on_without_what_only_linux_has(
    data: str, answer: Answer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sysconf(name: str) -> int:
        return {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 4096, "SC_NPROCESSORS_ONLN": 2}[name]

    def closed(function: Any) -> Any:
        def guarded(path: Any, *arguments: Any, **keys: Any) -> Any:
            if str(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(path)
            return function(path, *arguments, **keys)

        return guarded

    monkeypatch.setattr(os, "sysconf", sysconf)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(Path, "read_text", closed(Path.read_text))
    monkeypatch.setattr(Path, "write_text", closed(Path.write_text))
    monkeypatch.setattr(sys, "platform", "darwin")
    overrides = ["recipe.epochs=1", "dataset.limit=100", "dataset.test_limit=20", "protocol.cycles=2"]
    if data == "files":
        write_tree(home / "data" / "mine", ["a", "b"], train=40, test=4, size=8)
        monkeypatch.setenv("HARNESS_CACHE", str(home / "cache"))
        overrides += ["dataset={name: image_folder, folder: mine, image_size: 8}", f"where.data={home / 'data'}"]
        overrides = [text for text in overrides if "limit" not in text]
    assert harness.run.main(["c.yaml", *overrides, "where.output=out"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("note: the harness is tested on Linux, not on macOS\n")
    assert "Report of run c" in printed.out
