"""Makes the parts of a large report in several processes, which share its suites.

Each process reads a suite, looks at it and keeps its records packed until all suites have been looked at; then it
writes their parts, one after the other. So the memory holds the records of as many suites as there are processes.
"""

from __future__ import annotations

import pickle
import signal
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.data.host import processors
from harness.errors import StorageError, UserError, died
from harness.report import part
from harness.report.comparisons import Comparison
from harness.report.files import Files
from harness.report.formats import file_name
from harness.report.index import sweep
from harness.report.part import Look, Part
from harness.report.record_table import Columns
from harness.report.sources import Reading, Sources, of_manifest, without_collector
from harness.results.lock import LockLost
from harness.results.manifest import Manifest
from harness.results.records import CycleRecord

MANY = 100_000
"""Records from which on a report is made in several processes."""
MOST = 4
"""Processes at most: each holds the records of a suite, and what its tables need."""

USED = ("harness.report.plots", "jinja2", "pandas", "scipy.stats", "tabulate")
"""What the processes would import each."""


def number_of_processes(manifest: Manifest) -> int:
    """Return in how many processes the report of a run is best made; 1: in this one."""
    if sum(len(suite.trials) * len(suite.labelled) for suite in manifest.suites) < MANY:
        return 1
    stems = [file_name(f"{suite.name}_").casefold() for suite in manifest.suites]
    if any(one.startswith(other) for at, one in enumerate(stems) for other in stems[:at] + stems[at + 1 :]):
        return 1  # whose files might have one name, which only one process can tell apart
    return max(1, min(MOST, processors(), len(stems)))


class Processes:
    """The suites of a run, shared by several processes."""

    def __init__(self, pipes: Sequence[Connection], workers: Sequence[Any], index_folder: Path) -> None:
        self.pipes, self.workers, self.index_folder = pipes, workers, index_folder

    def look(self) -> list[Look]:
        """Return what the parts of other suites need of each suite."""
        used: set[str] = set()
        found: list[list[Look]] = []
        for looks, names in self._answers():
            found.append(looks)
            used |= names
        sweep(self.index_folder, used)
        return [*_in_turn(found)]

    def write(self, compared: Sequence[Comparison], columns: Columns, files: Files) -> list[Part]:
        """Write the files of all suites; return their parts."""
        for pipe in self.pipes:
            pipe.send((compared, columns))
        found: list[list[Part]] = []
        for parts, used, refused in self._answers():
            found.append(parts)
            files.used |= used
            files.refused = files.refused or refused
        return [*_in_turn(found)]

    def _answers(self) -> Iterator[Any]:
        """Yield the answer of each process. Raises what it raised, and UserError if it has died."""
        for pipe, worker in zip(self.pipes, self.workers, strict=True):
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                worker.join()
                raise UserError(f"a process that made the report has ended with {died(worker.exitcode)}") from None
            if isinstance(answer, BaseException):
                raise answer
            yield answer


@contextmanager
def started(manifest: Manifest, run_dir: Path, index_folder: Path, folder: Path, number: int) -> Iterator[Processes]:
    """Start so many processes, which end with the block. ``folder``: of the report."""
    for name in USED:
        import_module(name)  # once, before the processes part
    context: Any = get_context("fork")
    pipes, workers = [], []
    try:
        for first in range(number):
            ours, its = context.Pipe()
            pipes.append(ours)
            share = manifest.model_copy(update={"suites": manifest.suites[first::number]})
            given = (its, [*pipes], share, run_dir, index_folder, folder)
            workers.append(context.Process(target=_work, args=given, daemon=True))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads: none are needed
                workers[-1].start()
            its.close()
        yield Processes(pipes, workers, index_folder)
    finally:
        for worker in workers:
            worker.terminate()
        for worker, pipe in zip(workers, pipes, strict=False):
            worker.join()
            pipe.close()


def _in_turn(shares: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Yield the first of each share, then the second ones: the order of the suites that were dealt out."""
    for place in range(max(map(len, shares))):
        yield from (share[place] for share in shares if place < len(share))


def _work(
    pipe: Connection,
    others: Sequence[Connection],
    manifest: Manifest,
    run_dir: Path,
    index_folder: Path,
    folder: Path,
) -> None:
    """Be one of the processes: look at the suites of a manifest, then write their parts."""
    for other in others:
        other.close()  # else this process would never see that the one that started it has ended
    for number in (signal.SIGINT, signal.SIGHUP):  # they end the process that started this one, which ends it
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        reading, files = Reading(index_folder), Files(folder)
        held: list[tuple[Sources, bytes]] = []
        looks = []
        for suite in manifest.suites:
            sources = of_manifest(manifest.model_copy(update={"suites": [suite]}), run_dir, reading)
            ((entry, records),) = sources.suites
            looks.append(part.look(entry, records, sources.store))
            held.append((replace(sources, suites=[]), _packed(records)))
        pipe.send((looks, reading.used))
        compared, columns = pipe.recv()
        parts = []
        for seen in looks:
            sources, packed = held.pop(0)
            of_suite = [comparison for comparison in compared if comparison.suite == seen.suite.name]
            parts.append(part.write(seen.suite, _unpacked(packed), of_suite, columns, sources, files))
        pipe.send((parts, files.used, files.refused))
    except (EOFError, BrokenPipeError):  # the process that started this one has ended
        sys.exit(1)
    except (UserError, StorageError, LockLost) as error:
        pipe.send(error)


def _packed(records: list[CycleRecord]) -> bytes:
    return zlib.compress(pickle.dumps(records), 1)


def _unpacked(packed: bytes) -> list[CycleRecord]:
    with without_collector():
        records: list[CycleRecord] = pickle.loads(zlib.decompress(packed))  # noqa: S301 - of this very process
    return records
