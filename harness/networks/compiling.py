"""torch.compile, with compilation timed as a separate phase."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

from harness.errors import UserError
from harness.private import private_folder
from harness.results.clock import Clock

Result = TypeVar("Result")

VERSIONS = 64  # compiled versions per function: networks x batch sizes x modes of a process; torch's default is 8


@cache
def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return the function, compiled for each shape of its arguments; the first call imports the compiler."""
    # torch reads code and pickles from this folder; by default, from one that another user could have made before
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("torchinductor")))
    return torch.compile(function, dynamic=False)


def run(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return ``function(*arguments)``, run as compiled code.

    Raises UserError if it can't be compiled. Raises torch._dynamo.exc.FailOnRecompileLimitHit if a process needs more
    than VERSIONS compiled versions: by default torch would silently stop compiling, which distorts the trials' times.
    """
    from torch._dynamo import config, exc

    # set in each call, because the settings are thread-local, and each trial of a process has its own thread
    with config.patch(recompile_limit=VERSIONS, fail_on_recompile_limit_hit=True):
        try:
            return compiled(function)(*arguments)
        except exc.FailOnRecompileLimitHit:
            raise
        except exc.TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the second names the cause
            reason = " ".join(lines[:2]) or type(error).__name__
            raise UserError(f"recipe.compile: torch can't compile the network on this machine: {reason}") from error


@contextmanager
def timing_compilation(clock: Clock) -> Iterator[None]:
    """Record the seconds that torch spends on compilation in a ``with`` block as the clock's phase ``compile``.

    torch does not report Triton's tuning at the first launch of a kernel; its seconds stay in the current phase.
    """
    from torch._dynamo.callback import callback_handler

    phases = ExitStack()

    def begin(_: Any = None) -> None:
        phases.enter_context(clock.phase("compile"))

    def end(_: Any = None) -> None:
        phases.close()

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)
