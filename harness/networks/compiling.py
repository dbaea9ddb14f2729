"""torch.compile, with its seconds booked where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

from harness.errors import UserError
from harness.results.clock import Clock

Found = TypeVar("Found")

VERSIONS = 64  # of one function: networks x batches x modes of all trials of a process; torch's own limit is 8


@cache
def compiled(function: Callable[..., Found]) -> Callable[..., Found]:
    """Return a function that is compiled for each shape it meets; the first call imports the compiler."""
    return torch.compile(function, dynamic=False)


def run(function: Callable[..., Found], *arguments: Any) -> Found:
    """Return ``function(*arguments)``, run as compiled code.

    Raises UserError if it can't be compiled, and torch._dynamo.exc.FailOnRecompileLimitHit beyond VERSIONS in one
    process: torch's default, to go on without compiling and without a word, would make trials' seconds differ.
    """
    from torch._dynamo import config, exc

    # at each call, because the settings are a thread's own, and each trial of a process has another thread
    with config.patch(recompile_limit=VERSIONS, fail_on_recompile_limit_hit=True):
        try:
            return compiled(function)(*arguments)
        except exc.FailOnRecompileLimitHit:
            raise
        except exc.TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # the cause is in the second
            reason = " ".join(lines[:2]) or type(error).__name__
            raise UserError(f"recipe.compile: torch can't compile the network here: {reason}") from error


@contextmanager
def booked(clock: Clock) -> Iterator[None]:
    """Book what torch compiles in a ``with`` block on the clock's phase ``compile``.

    Kernels that Triton tries out at their first launch are not told of; their seconds stay in the phase that is open.
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
