"""Processes that start clean: each without a CUDA context, from one that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext

forking = False
"""Whether this process is itself so new, and without a GPU, that a copy of it is clean."""


def context() -> BaseContext:
    """Return how such processes start."""
    if forking:
        return multiprocessing.get_context("fork")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["torch", "tabulate", "harness.networks.building", "harness.trial"])
    return forkserver


def processes(count: int) -> ProcessPoolExecutor:
    """Return so many new processes, in this process's group: a signal to the group ends them, too."""
    return ProcessPoolExecutor(count, mp_context=context(), initializer=os.setpgid, initargs=(0, os.getpgrp()))
