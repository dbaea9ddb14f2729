"""Makes the parts of a large report in several processes, which share its suites.

Each process reads a suite, looks at it and keeps its records packed until all suites have been looked at; then it
writes their parts, one after the other. So the memory holds the records of as many suites as there are processes.
"""

from __future__ import annotations

import pickle
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import forked
from harness.data.host import processors
from harness.errors import StorageError, UserError, died, reason
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
"""Cycles of all trials from which on a report is made in several processes."""
MOST = 4
"""Processes at most: each holds the records of a suite, and what its tables need."""

ENDING = 5.0
"""Seconds that a process may take to end."""
USED = ("harness.report.plots", "jinja2", "pandas", "scipy.stats", "tabulate")
"""What the processes would import each."""


def number_of_processes(manifest: Manifest) -> int:
    """Return in how many processes the report of a run is best made; 1: in this one."""
    few = sum(len(suite.trials) * len(suite.labelled) for suite in manifest.suites) < MANY
    if few or not sys.platform.startswith("linux") or current_process().daemon:  # that can't have children
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
        for pipe, worker in zip(self.pipes, self.workers, strict=True):
            try:
                pipe.send((compared, columns))
            except OSError:
                raise _ended(worker) from None
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
                raise _ended(worker) from None
            if isinstance(answer, BaseException):
                raise answer
            yield answer


def _ended(worker: Any) -> UserError:
    worker.join(ENDING)
    return UserError(f"a process that made the report has ended with {died(worker.exitcode)}")


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
            worker = context.Process(target=_work, args=given, daemon=True)
            try:
                forked.start(worker)
            except OSError as error:
                raise UserError(f"the processes that make the report can't be started ({reason(error)})") from None
            finally:
                its.close()
            workers.append(worker)
        yield Processes(pipes, workers, index_folder)
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(ENDING)
            worker.kill()
            worker.join()


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
    forked.begin()
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
    except (UserError, StorageError, LockLost) as error:
        with suppress(ConnectionError):
            pipe.send(error)
    except (EOFError, ConnectionError):  # the process that started this one has ended
        sys.exit(1)


def _packed(records: list[CycleRecord]) -> bytes:
    return zlib.compress(pickle.dumps(records), 1)


def _unpacked(packed: bytes) -> list[CycleRecord]:
    with without_collector():
        records: list[CycleRecord] = pickle.loads(zlib.decompress(packed))  # noqa: S301 - of this very process
    return records
