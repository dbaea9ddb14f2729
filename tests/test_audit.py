"""What .ci/audit.py says where nobody can tell: "not checked", never that nothing was found."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.registry import ROOT

PATH = ROOT / ".ci" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", PATH)
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def answering(folder: Path, text: str, seconds: float = 0.0) -> list[str]:
    """Return a command that answers as pip-audit does, with this text."""
    path = folder / "answer.py"
    path.write_text(
        f"import sys, time\ntime.sleep({seconds})\nout = sys.argv[sys.argv.index('--output') + 1]\n"
        f"open(out, 'w').write({text!r})\n"
    )
    return [sys.executable, str(path)]


GOOD, SKIPPED = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
BAD = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1"}]}


def test_what_is_found_is_said() -> None:
    assert audit.verdict([GOOD, SKIPPED]) == (
        "1 packages checked, none has a known vulnerability; not checked, as its index does not know them: b",
        0,
    )
    assert audit.verdict([GOOD, BAD]) == ("2 packages checked, vulnerable: c 2 (CVE-1)", 1)


@pytest.mark.parametrize("found", [[], [SKIPPED, SKIPPED]])
def test_an_index_that_knows_nothing_is_no_pass(found: list[Any]) -> None:
    with pytest.raises(audit.NotChecked, match="knows no installed package"):
        audit.verdict(found)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"dependencies"'])
def test_an_answer_that_is_none_is_no_pass(text: str, tmp_path: Path) -> None:
    with pytest.raises(audit.NotChecked, match="no answer"):
        audit.audited(answering(tmp_path, text), 20)


def test_an_index_that_is_silent_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(audit.NotChecked, match=r"did not answer within 1 s"):
        audit.audited(answering(tmp_path, "{}", seconds=30), 1)
    assert audit.audited(answering(tmp_path, '{"dependencies": [1]}'), 20) == [1]


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ([GOOD], "its index does not know that pyyaml==5.3 has vulnerabilities"),
        (None, "it can't be installed"),
    ],
)
def test_what_can_not_be_checked_is_said(
    known: Any, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def install(*arguments: Any, **keys: Any) -> None:
        if known is None:
            raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(audit.venv, "create", lambda *arguments, **keys: None)
    monkeypatch.setattr(audit.subprocess, "run", install)
    monkeypatch.setattr(audit, "audited", lambda command, seconds: known)
    assert audit.main() == 0
    assert capsys.readouterr().out == f"pip-audit: not checked ({why})\n"


def test_a_vulnerable_package_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit.venv, "create", lambda *arguments, **keys: None)
    monkeypatch.setattr(audit.subprocess, "run", lambda *arguments, **keys: None)
    monkeypatch.setattr(audit, "audited", lambda command, seconds: [BAD])
    assert audit.main() == 1 and "vulnerable: c 2 (CVE-1)" in capsys.readouterr().out
