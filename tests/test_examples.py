"""Every example runs, and the package's face has what it promises."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).resolve().parent.parent


def test_one_cycle(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "one_cycle.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("40 labelled images: accuracy")
    assert lines[1].startswith("1402 candidates have scores from")
    assert lines[-1] == "the next cycle trains on 80 images"


def test_the_face_imports_nothing_until_it_is_used() -> None:
    code = (
        "import sys, harness; print(sorted({'torch', 'ray', 'pydantic'} & set(sys.modules)), harness.Training.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["[]", "Training"]


def test_every_name_of_the_face_is_there() -> None:
    assert all(getattr(harness, name) is not None for name in harness.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = harness.Nothing
