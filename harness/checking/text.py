"""What check and list share: the command line, sentences with file and line, and wrapped output."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from harness.config.source import parsed, problem_of
from harness.errors import NonFiniteLoss, UserError, did_you_mean
from harness.faults import name_of, place, raised
from harness.messages import cut as cut_text
from harness.messages import sentence


class Wrong(Exception):
    """A check failed: a plug-in's class, what is wrong with it, and the hook that causes it, or "" if unknown."""

    def __init__(self, plugin: type[Any], problem: str, hook: str = "") -> None:
        super().__init__(problem)
        self.plugin, self.problem, self.hook = plugin, problem, hook


class Inapplicable(Exception):
    """A check does not apply to a plug-in; the message says why."""


def width() -> int:
    """Return the width of the terminal, or 80 if there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def wrapped(mark: str, text: str, indent: int = 6) -> str:
    """Return ``mark`` (shorter than the indent) and a text, wrapped to the terminal's width."""
    return textwrap.fill(
        text,
        width(),
        initial_indent=f"{mark:<{indent}}",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def explained(name: str, plugin: type[Any], error: Exception, hook: str = "") -> str:
    """Return what an exception of a check or of a plug-in means, in a run's sentence with file and line.

    The line is that of ``hook`` if the plug-in's own file is not in the traceback.
    """
    if isinstance(error, Wrong):
        return f"{name} ({place(error.plugin, error.hook)}): {error.problem}"
    if isinstance(error, UserError | NonFiniteLoss):
        return str(error)
    return str(raised(plugin, "", error, name, at=hook))


def run_checks(
    name: str,
    plugin: type[Any],
    checks: Iterable[Callable[[Any], str | None]],
    subject: Any,
    say: Callable[[str], None],
    prefix: str = "",
) -> tuple[int, int]:
    """Run checks of a subject, say a line for each, and return (how many failed, how many ran).

    A check's docstring says what must hold. It raises Wrong if that does not hold, or Inapplicable; what it returns is
    a note. An exception of the plug-in is a failure.
    """
    failed = ran = 0
    for check in checks:
        holds = (inspect.getdoc(check) or "").splitlines()[0].removesuffix(".")
        holds = f"{prefix}{holds[:1].lower()}{holds[1:]}"
        try:
            note = check(subject)
        except Inapplicable as reason:
            say(wrapped("skip", f"{holds}: {reason}"))
            continue
        except Exception as error:
            failed += 1
            say(wrapped("WRONG", f"{prefix}{explained(name, plugin, error, getattr(subject, 'hook', ''))}"))
        else:
            say(wrapped("ok", holds))
            if note:
                say(wrapped("note", f"{prefix}{note}"))
        ran += 1
    return failed, ran


def written(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the settings that the command line gives as KEY=VALUE, with values in YAML. Raises UserError."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{pair}: a setting is written KEY=VALUE, e.g. iterations=3")
        try:
            values[key] = parsed(value)
        except UserError as error:
            raise UserError(f"{cut_text(pair)}: {problem_of(error)}") from None
    return values


def settings_of(classes: Iterable[type[Any]], values: dict[str, Any]) -> list[Any]:
    """Return the settings of each class with these values. Raises UserError with key and allowed."""
    classes = [*classes]
    allowed = {key for cls in classes for key in cls.Settings.model_fields}
    for key in values:
        if key not in allowed:
            hint = did_you_mean(key, allowed) or "; this plug-in has no settings"
            raise UserError(f"{key}={values[key]}: unknown key {key!r}{hint}")
    return [validated(cls, {k: v for k, v in values.items() if k in cls.Settings.model_fields}) for cls in classes]


def validated(cls: type[Any], values: dict[str, Any]) -> Any:
    """Return the settings of a class with these values, checked like those of a config. Raises UserError."""
    try:
        return cls.Settings.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        path, problem = sentence(cls.Settings, error.errors()[0])
        key = ".".join(map(str, path)) or "Settings"
        missing = f"; write {key}=VALUE" if path and path[-1] not in values and len(path) == 1 else ""
        raise UserError(f"{name_of(cls)} (command line): {key}: {problem}{missing}") from None


LARGE, SMALL = 16, 8
"""Whole numbers above LARGE are lowered to SMALL for a check: iterations, widths, batch sizes, numbers of samples."""


def cut(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that make a check of a plug-in short, without those in ``values`` and those not allowed."""
    lowered: dict[str, Any] = {}
    for key, field in cls.Settings.model_fields.items():
        large = isinstance(field.default, int) and not isinstance(field.default, bool) and field.default > LARGE
        if large and key not in values:
            own = {k: v for k, v in values.items() if k in cls.Settings.model_fields}
            try:
                validated(cls, {**own, **lowered, key: SMALL})
            except UserError:
                continue
            lowered[key] = SMALL
    return lowered
