"""torch.compile, with its seconds booked where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.cycle import Clock

VERSIONS = 64  # of one function: networks x batches x modes of all trials of a process; torch's own limit is 8


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for each shape it meets; it is the same for all networks of one build.

    Beyond VERSIONS of them it raises torch._dynamo.exc.FailOnRecompileLimitHit: torch's default, to go on without
    compiling and without a word, would make one trial's seconds another's multiple.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = VERSIONS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function, dynamic=False)


@contextmanager
def booked(clock: Clock) -> Iterator[None]:
    """Book what torch compiles in a ``with`` block on the clock's phase ``compile``."""
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
