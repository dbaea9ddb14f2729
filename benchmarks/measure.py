"""What the benchmarks share, and the test of scoring's memory: the seconds and the peak memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate

import torch

from harness.learning.scoring import seconds_since


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes, with all it has started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was started before is no part of it
    began = time.perf_counter()
    work()
    return seconds_since(began, device)


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that tensors made by ``work`` hold at once.

    By the allocator's own count, with what each operation makes inside.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))
