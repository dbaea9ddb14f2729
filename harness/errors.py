"""Errors that a user can mend, and the one sentence each of them gets."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that the user can mend: printed as it stands, without a traceback; exit code 2."""


class DataMissing(UserError):
    """A dataset is not where it should be. The message says what to get and where to put it."""


class NonFiniteLoss(RuntimeError):
    """A training step gave a loss that is not a finite number."""


class OutOfMemory(UserError):
    """A device's memory is full, and nothing is left to try that leaves the figures alone."""


class NotReproduced(RuntimeError):
    """A cycle was computed a second time and came out different from its stored record."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return '; did you mean ...? (allowed: ...)' for a word that is not among the allowed ones."""
    options = sorted(allowed)
    close = get_close_matches(word, options, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} allowed: {', '.join(options)}" if options else ""
