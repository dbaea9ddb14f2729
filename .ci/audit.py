"""Asks pip-audit whether an installed package has a known vulnerability; says "not checked" where nobody can tell.

pip-audit alone ends with "No known vulnerabilities found" and 0 also if its index knows none of the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"
VULNERABLE = "pyyaml==5.3"
"""A package with vulnerabilities that every index of vulnerabilities knows."""
SECONDS = 300.0


class NotChecked(Exception):
    """Nobody can tell; the message says why."""


def audited(command: list[str], seconds: float) -> list[dict[str, Any]]:
    """Return what pip-audit finds out: for each package its vulnerabilities, or why it was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [*command, "--format", "json", "--output", str(out), "--progress-spinner", "off", "--timeout", "5"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
            found: list[dict[str, Any]] = json.loads(out.read_text())["dependencies"]
        except subprocess.TimeoutExpired:
            raise NotChecked(f"its index did not answer within {seconds:.0f} s") from None
        except (OSError, ValueError, KeyError):
            raise NotChecked(next(reversed(done.stderr.strip().splitlines()), "no answer")[:200]) from None
    return found


def verdict(found: list[dict[str, Any]]) -> tuple[str, int]:
    """Return a line about what was found out and an exit code. Raises NotChecked."""
    bad = [f"{p['name']} {p['version']} ({', '.join(v['id'] for v in p['vulns'])})" for p in found if p.get("vulns")]
    skipped = [package["name"] for package in found if "skip_reason" in package]
    if len(skipped) == len(found):
        raise NotChecked("its index knows no installed package")
    left = f"; not checked, as its index does not know them: {', '.join(skipped)}" if skipped else ""
    checked = f"{len(found) - len(skipped)} packages checked"
    return f"{checked}, {'vulnerable: ' + ', '.join(bad) if bad else 'none has a known vulnerability'}{left}", bool(bad)


def main() -> int:
    """Print the verdict on the packages of the Python that runs this; return 1 if one is vulnerable, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            venv.create(folder, with_pip=True)
            install = [f"{folder}/bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--retries=0"]
            try:
                subprocess.run([*install, PIP_AUDIT], check=True, capture_output=True, timeout=SECONDS)
            except subprocess.SubprocessError:
                raise NotChecked("it can't be installed") from None
            (Path(folder) / "vulnerable.txt").write_text(VULNERABLE)
            command = [f"{folder}/bin/pip-audit"]
            known = audited([*command, "--no-deps", "--disable-pip", "-r", f"{folder}/vulnerable.txt"], 30)
            if not any(package.get("vulns") for package in known):
                raise NotChecked(f"its index does not know that {VULNERABLE} has vulnerabilities")
            text, code = verdict(audited([*command, "--path", sysconfig.get_path("purelib")], SECONDS))
        except NotChecked as why:
            text, code = f"not checked ({why})", 0
    print(f"pip-audit: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
