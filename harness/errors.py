"""The exceptions that the harness raises, suggestions for misspelt words, and a command line that raises them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn


class UserError(Exception):
    """A problem that the user can fix. The message is printed without a traceback; the exit code is 2."""


class DataMissing(UserError):
    """A dataset's files are missing, damaged or unsuitable. The message names them and says what to get or replace."""


class BadFile(DataMissing):
    """One file that can't be used. The message starts with its path."""


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments like all other user errors: as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; --help lists the options")


class NonFiniteLoss(RuntimeError):
    """A loss or a score is NaN or infinite."""


class OutOfMemory(UserError):
    """The device's memory is full, even for the smallest batch that leaves the results unchanged."""


class NotReproduced(RuntimeError):
    """A recomputed cycle differs from its stored record."""


def readable(text: str) -> str:
    """Return text that can be printed in one line and stored as UTF-8: the name of a file may hold any bytes."""
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'X'? allowed: A, B", or "; allowed: A, B" if none is similar, or "" if none is allowed."""
    options = sorted(allowed)
    close = get_close_matches(word, options, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} allowed: {', '.join(options)}" if options else ""
