"""The exceptions that the harness raises, suggestions for misspelt words, and a command line that raises them."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")


class UserError(Exception):
    """A problem that the user can fix. The message is printed without a traceback; the exit code is 2."""

    def __str__(self) -> str:
        return super().__str__() or type(self).__name__  # a plug-in may raise DataMissing()


class DataMissing(UserError):
    """A dataset's files are missing, damaged or unsuitable. The message names them and says what to get or replace."""


class StorageError(Exception):
    """The file system refuses to read or write a file of a run. It ends the run; the exit code is 1.

    The message names the file, the system's reason and what to do.
    """


class BadFile(DataMissing):
    """One file that can't be used. The message starts with its path, which the problem goes on from."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(path, problem)  # both, so that it can be pickled
        self.path, self.problem = str(path), problem

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


def gathered(works: Iterable[Callable[[], Result]]) -> list[Result]:
    """Return what functions return. Raises one DataMissing with the sentences of all that raise it."""
    found, problems = [], dict[str, None]()
    for work in works:
        try:
            found.append(work())
        except DataMissing as problem:
            problems[str(problem)] = None
    if problems:
        raise DataMissing("; ".join(problems))
    return found


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments like all other user errors: as one sentence, without the usage text.

    An option has one name: --f is not --force.
    """

    def __init__(self, *arguments: Any, **keys: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **keys})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed words. Raises UserError."""
        self._check_options(args)
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed words; options may stand between them. Raises UserError."""
        self._check_options(args)
        return super().parse_intermixed_args(args, namespace)

    def _check_options(self, args: Sequence[str] | None) -> None:
        """Raise UserError for an unknown option, which argparse would name after what is missing, or not at all."""
        words = sys.argv[1:] if args is None else [*args]
        words = words[: words.index("--")] if "--" in words else words
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in [] if {"-h", "--help"} & {*words} else words:
            option = word.partition("=")[0]
            if re.match(r"--?[a-zA-Z]", option) and " " not in option and option not in options:
                # all options share their dashes, so what is close must share more
                raise UserError(f"unknown option {option!r}{did_you_mean(option, options, 0.6)}")

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; --help lists the options")


def in_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding, for example ASCII.

    Names of files, arguments and what goes to Ray may hold any characters. Only a command may call this.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def answered(work: Callable[[], int]) -> int:
    """Return the exit code of a command line's work, or print its error as one line and return 2 (StorageError: 1).

    Output never decides over the work: if its reader goes away, as ``head`` does, or there is none, nothing more is
    printed; what its encoding lacks is written in other characters.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _open_if_closed(number, name)
    out, err = Lasting(sys.stdout), Lasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            return _answered(work)
        finally:
            out.flush()
            err.flush()


def _open_if_closed(number: int, name: str) -> None:
    """Let a standard stream that the caller has closed lead into nothing; else a file of the run would take its place.

    Files take the lowest number that is free.
    """
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the processes that it starts need one, too
        setattr(sys, name, open(number, "r+" if number == 0 else "w", closefd=False))  # noqa: SIM115


PLAIN = "harness.plain"
"""Python's name for ``_plain``."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks, such as that of an ASCII locale, in characters that all have."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    kept = {"±": "+-", "\u2013": "-", "\u2212": "-"}
    return "".join(kept.get(each) or each.encode("ascii", "backslashreplace").decode() for each in found), error.end


codecs.register_error(PLAIN, _plain)


class Lasting:
    """A stream that goes on into nothing once nobody reads it any more: a pipe, a terminal, a file on a full disk."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            with self._lasting():  # it flushes
                stream.reconfigure(errors=PLAIN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, unless nobody reads it."""
        with self._lasting():
            self.stream.write(text)
        return len(text)

    def close(self) -> None:
        """Flush: what closes it, such as a plug-in, is not the only one that writes."""
        self.flush()

    def flush(self) -> None:
        """Flush, unless nobody reads it."""
        with self._lasting():
            self.stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # what is still buffered goes into nothing as well
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())
            os.close(nothing)


def _answered(work: Callable[[], int]) -> int:
    try:
        check_platform(sys.platform)
        return work()
    except UserError as error:
        message = "\n".join(readable(line) for line in str(error).splitlines())
        print(f"error: {message}", file=sys.stderr)
        return 2
    except StorageError as error:
        sys.stdout.flush()  # the sentence is the last word
        print(f"error: {readable(str(error))}", file=sys.stderr)
        return 1


def check_platform(platform: str) -> None:
    """Raise UserError on Windows, and say on any other system but Linux that the harness is not tested there."""
    if platform in ("win32", "cygwin", "msys"):
        raise UserError("the harness does not run on Windows; run it in WSL, the Windows Subsystem for Linux")
    if platform != "linux":
        name = {"darwin": "macOS"}.get(platform, platform)
        print(f"note: the harness is tested on Linux, not on {name}", file=sys.stderr)


UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff0-\ufffb]"
)
"""Characters that a terminal obeys or hides: control characters, half characters, directions, invisible ones."""


def expanded(path: str | Path) -> Path:
    """Return a path that a user wrote, with ``~`` as the home folder. Raises UserError if there is none."""
    try:
        return Path(path).expanduser() if str(path).startswith("~") else Path(path)
    except RuntimeError:
        raise UserError(f"{path}: there is no home folder {Path(path).parts[0]}") from None


def no_pipe(path: Path) -> Path:
    """Return the path of something that is to be opened. Raises OSError for a pipe or device: it may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a pipe or a device, not a file")
    return path


def kind_of(path: Path) -> str:
    """Return what is at a path, such as 'a pipe'; "" if there is nothing. Raises OSError."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Death(BaseException):
    """Stands for the end of a process, in checks and tests: no plug-in's fault."""


class RayLost(RuntimeError):
    """Ray has died, and starting it again does not help."""


class NonFiniteLoss(RuntimeError):
    """A loss, a score or a weight is NaN or infinite."""


REMEDY = (
    "a lower learning rate (recipe.learning_rate or the method's own) or, for ISDA, a lower lambda_0 usually fixes this"
)
"""What to do against a loss that explodes."""


class OutOfMemory(UserError):
    """The device's memory is full, even for the smallest batch that leaves the results unchanged."""


class NotReproduced(RuntimeError):
    """A recomputed cycle differs from its stored record."""


def readable(text: str) -> str:
    """Return text that can be printed in one line and stored as UTF-8: the name of a file may hold any bytes.

    Unprintable characters are written out, so that a terminal does not obey them.
    """
    return UNPRINTABLE.sub(_written_out, text)


FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # first characters of a spreadsheet's formulas, also full-width


def no_formula(text: str) -> str:
    """Return text that a spreadsheet shows as it is, instead of computing it as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def printable(value: Any) -> Any:
    """Return JSON values with texts, also as keys, that can be printed: see ``readable``."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    return [*map(printable, value)] if isinstance(value, list) else value


def _written_out(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00  # Python's stand-in for a byte that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else found[0].encode("unicode_escape").decode()


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def did_you_mean(word: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """Return "; did you mean 'X'? allowed: A, B", or "; allowed: A, B" if none is similar, or "" if none is allowed."""
    options = sorted(allowed)
    close = get_close_matches(word, options, n=1, cutoff=cutoff)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} allowed: {', '.join(options)}" if options else ""


def most_similar_first(word: str, options: Sequence[str]) -> list[str]:
    """Return options in their order, those that are similar to a word first."""
    close = get_close_matches(word, options, n=3, cutoff=0.5)
    return [*dict.fromkeys([*close, *options])]


def died(code: int | None) -> str:
    """Return how a process ended, from its exit code; a negative one, or one above 128, stands for a signal."""
    number = -code if code is not None and code < 0 else (code or 0) - 128
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {code}"
