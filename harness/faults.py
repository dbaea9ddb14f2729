"""The sentence about a plug-in that breaks its contract, with the plug-in's name, file and line.

The harness calls hooks through ``call``, so that an exception becomes such a sentence too. What hooks return is checked
in harness.learning.boundary and harness.data.dataset.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import Death, NonFiniteLoss, NotReproduced, UserError

Result = TypeVar("Result")

OURS = Path(__file__).resolve().parent
"""The harness's own code, which is no plug-in's."""


class PluginFault(UserError):
    """A plug-in breaks its contract, or raises an exception. The message names the plug-in, the file and the line."""

    def __init__(self, sentence: str, trace: str = "") -> None:
        super().__init__(sentence)
        self.trace = trace
        """The traceback of the plug-in's exception, with line breaks; empty for a wrong return value."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.trace)


class WrongData(ValueError):
    """The arrays of a dataset don't fit together. The message is a sentence without the plug-in's name."""


def named(plugin: Any, name: str) -> Any:
    """Return the plug-in (an object), which faults call ``name``, as the config does."""
    plugin._plugin_name = name
    return plugin


def name_of(plugin: Any) -> str:
    """Return the name of a plug-in (an object or a class) in the config, else that of its module."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return getattr(plugin, "_plugin_name", "") or cls.__module__.rpartition(".")[2]


def place(plugin: Any, hook: str = "") -> str:
    """Return "file.py:LINE" of a hook of a plug-in (an object or a class), or of the class if it defines no such."""
    return _at(*_place(plugin if isinstance(plugin, type) else type(plugin), hook))


def fault(plugin: Any, hook: str, problem: str, name: str = "") -> PluginFault:
    """Return the fault of a plug-in (an object or a class) whose ``hook`` has a problem: "must return ...; got ..."."""
    return PluginFault(f"{name or name_of(plugin)} ({place(plugin, hook)}): {hook} {problem}")


def call(plugin: Any, hook: str, *arguments: Any, name: str = "") -> Any:
    """Return the result of a hook of a plug-in (an object or a class, which faults call ``name``).

    Raises PluginFault if the hook raises an exception. Exceptions that are not the plug-in's pass: see ``_passes``.
    """
    return guarded(plugin, hook, lambda: getattr(plugin, hook)(*arguments), name)


def make(plugin: type[Any], name: str, *arguments: Any) -> Any:
    """Return an object of the class, which faults call ``name``. Raises PluginFault like ``call``."""
    return guarded(plugin, "__init__", lambda: named(plugin(*arguments), name), name)


def guarded(plugin: Any, hook: str, work: Callable[[], Result], name: str = "", at: str = "") -> Result:
    """Return ``work()``, code of a plug-in that faults call ``hook``. Raises PluginFault like ``call``.

    The line is that of the hook ``at``, by default ``hook``, if no line of the plug-in's own raised the exception.
    """
    try:
        with unmoved():
            return work()
    except BaseException as error:  # the panic of a library in Rust is no Exception
        if _passes(error):
            raise
        raise raised(plugin, hook, error, name, at) from error


@contextmanager
def unmoved() -> Iterator[None]:
    """Undo that code of a plug-in changes the current folder: paths of the run may be relative to it."""
    try:
        before = os.getcwd()  # noqa: PTH109 - as fast as can be
    except OSError:  # it was removed
        before = ""
    try:
        yield
    finally:
        with suppress(OSError):
            if before and os.getcwd() != before:  # noqa: PTH109
                os.chdir(before)


def described(value: Any) -> str:
    """Return what a wrong value is, for a message: a number itself, the type and shape of an array, else the type."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, Sequence) else kind


def accepts(function: Any, count: int) -> bool:
    """Return whether a function can be called with ``count`` positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function without a signature, in C
        return callable(function)
    return True


def check_signature(plugin: type[Any], contract: type[Any], hook: str, name: str) -> None:
    """Raise PluginFault if a class overrides a hook of its contract, but does not accept the contract's arguments."""
    expected, found = (inspect.getattr_static(cls, hook) for cls in (contract, plugin))
    if found is expected:
        return
    parameters = list(inspect.signature(getattr(contract, hook)).parameters)
    on_class = isinstance(expected, classmethod)
    parameters = parameters if on_class else parameters[1:]  # without self
    listed = f"({', '.join(parameters)})"
    if on_class and not isinstance(found, classmethod | staticmethod):
        raise fault(plugin, hook, f"must be a @classmethod that accepts {listed}", name)
    function = getattr(found, "__func__", found)
    if not callable(function):
        raise fault(plugin, hook, f"must be a method that accepts {listed}; got {described(found)}", name)
    count = len(parameters) + (not isinstance(found, staticmethod))
    if not accepts(function, count):
        own = list(inspect.signature(function).parameters)
        shown = ", ".join(own if isinstance(found, staticmethod) else own[1:])
        raise fault(plugin, hook, f"must accept the arguments {listed}; it accepts ({shown})", name)


def _passes(error: BaseException) -> bool:
    """Return whether an exception is not the plug-in's: a message to the user, an end, memory, the device, or Ray."""
    if isinstance(error, UserError | NonFiniteLoss | NotReproduced | MemoryError | KeyboardInterrupt | Death):
        return True
    kinds = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.split(".")[0] in ("torch", "builtins")}
    if kinds & {"OutOfMemoryError", "AcceleratorError"} or type(error).__module__.split(".")[0] == "ray":
        return True
    signs = "CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "can't allocate memory"
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def raised(plugin: Any, hook: str, error: BaseException, name: str = "", at: str = "") -> PluginFault:
    """Return the fault for an exception in a hook, at the deepest line in the plug-in's file or folder.

    Without ``hook`` it names the plug-in's function that the harness called.
    """
    cls = plugin if isinstance(plugin, type) else type(plugin)
    file, line = _place(cls, at or hook)
    own, _ = _place(cls, "")
    for frame in traceback.extract_tb(error.__traceback__):
        if _belongs(frame.filename, own):
            file, line = frame.filename, frame.lineno or 0
            hook = hook or frame.name
    try:
        lines = str(error).strip().splitlines()
        trace = "".join(traceback.format_exception(error))
    except Exception:  # an exception that can't be printed
        frames = "".join(traceback.format_tb(error.__traceback__))
        lines, trace = [], f"Traceback (most recent call last):\n{frames}{type(error).__name__}"
    said = f": {lines[0]:.300}" if lines else ""
    problem = f"returns wrong data{said}" if isinstance(error, WrongData) else f"raises {type(error).__name__}{said}"
    return PluginFault(f"{name or name_of(plugin)} ({_at(file, line)}): {hook or 'it'} {problem}", trace)


def _belongs(file: str, own: str) -> bool:
    """Return whether a frame's file is the plug-in's own, or in its folder but not of the harness or a library."""
    if file == own:
        return True
    path, folder = Path(file), Path(own).parent
    return path.is_absolute() and path.parent == folder and folder != OURS / "learning" and folder != OURS / "data"


def _at(file: str, line: int) -> str:
    return f"{Path(file).name}:{line}"


@cache
def _place(cls: type[Any], hook: str) -> tuple[str, int]:
    """Return (file, line) of a hook's ``def``, or of the class if only the harness defines the hook.

    A class that the harness makes for a user's function, such as a model of timm, names it as ``written_as``.
    """
    function: Any = inspect.getattr_static(cls, "written_as", None)
    if function is None and hook:
        function = inspect.getattr_static(cls, hook, None)
    function = inspect.unwrap(getattr(function, "__func__", function)) if function is not None else None
    code = getattr(function, "__code__", None)
    if code is not None and OURS / "learning" / "contract.py" != Path(code.co_filename) != OURS / "data" / "dataset.py":
        line = code.co_firstlineno
        try:  # the first line may be that of a decorator
            lines = inspect.getsourcelines(code)[0]
            line += next((i for i, text in enumerate(lines) if text.lstrip().startswith(("def ", "async "))), 0)
        except OSError:
            pass
        return code.co_filename, line
    try:
        return inspect.getsourcefile(cls) or "?", inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):  # a class of a notebook
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
        return file, 0
