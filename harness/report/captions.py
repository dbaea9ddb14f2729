"""Captions and notes that describe the records of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from harness.errors import readable
from harness.report.statistics import BEFORE, LEVEL, POWER
from harness.results.manifest import SuiteEntry
from harness.results.records import CHANGED, CycleRecord
from harness.results.store import RunStore

BANDS = 6  # methods of a plot whose bands, and lines between differences, can be told apart
CYCLES_SHOWN = 4  # cycles named per warning

SPREAD = {
    "mean±std": "mean and sample standard deviation over n seeds; (n=...): fewer seeds",
    "n": "number of seeds",
}
CURVE = {
    "AUBC": "area under the curve of the metric by number of labelled images, divided by the range of these numbers; "
    "only seeds with results at all of them count",
}
TEST_COLUMNS = {
    "p": "exact two-sided sign-flip test of the differences by seed",
    "p (Holm)": "p, adjusted for all comparisons of the report except the primary ones; a claim needs at most "
    f"{LEVEL}, or {BEFORE} as long as the primary comparison is not significant",
    "seeds needed": f"to find a difference as large as the mean with a probability of {100 * POWER:.0f} %",
}
PHASE_COLUMNS = {
    "train": "training of the target network",
    "auxiliary": "additional training by the method, such as a VAE or a committee",
    "score": "inference on candidates",
    "select": "selection of the images",
    "total": "train + auxiliary + score + select",
    "compile": "torch.compile",
    "evaluate": "inference on the test set",
    "checkpoint": "writing the weights",
}
COST_COLUMNS = {
    "EP": "extra parameters, which the method adds to the target network (number, and MiB in float32)",
    "TT": "training time: train + auxiliary",
    "ST": "sampling time: score + select, after one warm-up batch that is not timed",
    "total (min)": "TT + ST, without torch.compile",
    "memory": "highest memory of any process of the trial in any cycle (of the GPU; on CPUs: of the host)",
    "energy": "of the GPU in the whole cycle, by all processes on it; not where it is unknown or a training was shared",
}
"""What the columns of tables mean: term -> meaning. The report says it once."""


def counted(number: int, noun: str) -> str:
    """Return '1 seed' or '3 seeds'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def distinct(values: Iterable[Any]) -> str:
    """Return the distinct values as text, sorted and joined with slashes."""
    return "/".join(sorted({str(v) for v in values}))


def has_one_initial_set(suite: SuiteEntry) -> bool:
    """Return whether all seeds of a suite start from the same labelled images."""
    return suite.settings.get("protocol", {}).get("initial_set") == "per_run"


def provenance(suite: SuiteEntry, records: Sequence[CycleRecord]) -> str:
    """Return the origin of a suite's numbers: title, recipe, seeds, data, devices, precision, and any progress."""
    fingerprints = distinct(r.data_fingerprint[:12] or "unknown" for r in records)
    spread = ", one initial set for all seeds: std leaves out its spread" if has_one_initial_set(suite) else ""
    return (
        f"{suite.title}: {suite.recipe}; {counted(len(suite.seeds), 'seed')}{spread}; dataset {suite.dataset} "
        f"(fingerprint {fingerprints}); {distinct(r.device for r in records)}, {distinct(r.precision for r in records)}"
        + ("" if is_finished(suite, records) else f"; unfinished: {progress(suite, records)}")
        + "."
    )


def curves_note(suite: SuiteEntry, differences: Sized | None) -> str:
    """Return what a plot of learning curves shows; ``differences``: those of its second panel, or none."""
    note = "Mean (line) and mean±std (band) over seeds."
    if len(suite.methods) > BANDS:
        note = "Mean over seeds."
    if differences is not None and len(differences):
        note += " Below: differences by seed, mean and 95 % interval by Student's t (none for one seed, cut "
        note += "at the edge if much longer than the differences)."
    return note


def is_finished(suite: SuiteEntry, records: Sequence[CycleRecord]) -> bool:
    """Return whether every cycle of every trial is finished."""
    return len(records) >= len(suite.trials) * len(suite.labelled)


def progress(suite: SuiteEntry, records: Sequence[CycleRecord]) -> str:
    """Return, for example, '3 of 15 trials and 40 of 75 cycles finished'."""
    finished = sum(r.cycle == len(suite.labelled) - 1 for r in records)
    cycles = len(suite.trials) * len(suite.labelled)
    trials = f"{finished} of {counted(len(suite.trials), 'trial')}"
    return f"{trials} and {len(records)} of {counted(cycles, 'cycle')} finished"


def timing_note(records: Sequence[CycleRecord]) -> str:
    """Return a note on how devices were shared, and so on which times are comparable."""
    share = max(r.device_share for r in records)
    note = "one trial per device"
    if share > 1:
        most = max(r.threads for r in records)
        threads = (
            f"{counted(most, 'thread')} each" if len({r.threads for r in records}) == 1 else f"up to {most} threads"
        )
        devices = distinct(r.device for r in records)
        note = f"up to {share} trials shared a device ({devices}, {threads}): compare times within this suite only"
    if any(r.shared_from for r in records):
        note += "; methods shared the training of the first cycle, and its time counts for each of them"
    return note


def left_out(suite: SuiteEntry, records: Sequence[CycleRecord], store: RunStore) -> list[str]:
    """Return a warning for each file that is why finished cycles are not among the records of a suite."""
    finished = Counter(r.trial for r in records)
    return [
        readable(
            f"WARNING: {problem}; the tables lack {entry.method}, seed {entry.seed}, from cycle {finished[trial]} on."
        )
        for trial, entry in suite.trials.items()
        if finished[trial] < len(suite.labelled)
        for problem in store.trial(trial).problems(finished[trial])
    ]


def reading(terms: Mapping[str, str]) -> str:
    """Return what columns mean as one sentence; '' without any."""
    return "; ".join(f"{term}: {meaning}" for term, meaning in terms.items()) + ("." if terms else "")


def in_text(terms: Mapping[str, str]) -> dict[str, str]:
    """Return the terms of a table as plain text, in which nothing is bold."""
    return {term: meaning for term, meaning in terms.items() if term != "bold"}


def differing_seeds(suite: SuiteEntry, records: Sequence[CycleRecord]) -> list[str]:
    """Return a warning if the rows of a suite have results of different seeds."""
    found: dict[str, set[int]] = {}
    for r in records:
        found.setdefault(r.method, set()).add(r.seed)
    methods: dict[tuple[int, ...], list[str]] = {}
    for method in suite.methods:
        if seeds := sorted(found.get(method, ())):
            methods.setdefault(tuple(seeds), []).append(method)
    if len(methods) < 2:
        return []
    parts = [f"{', '.join(names)}: {', '.join(map(str, seeds))}" for seeds, names in methods.items()]
    return [
        f"WARNING: the rows have different seeds, so that their means differ by these, too: {'; '.join(parts)}. "
        "Differences to the reference are those of common seeds."
    ]


def uncommitted(records: Sequence[CycleRecord]) -> list[str]:
    """Return a warning if the code had changes that no commit holds."""
    if not (found := sorted({r.commit for r in records if r.commit.endswith(CHANGED)})):
        return []
    return [
        f"WARNING: the code had changes that no commit holds ({', '.join(found)}): keep these changes with the results."
    ]


def mixtures(records: Sequence[CycleRecord]) -> list[str]:
    """Return a warning for each property, such as the device, that differs between the records of a suite."""
    different: dict[str, set[str]] = {}
    seen = set()
    for r in records:
        # records of an index share these mappings, and most are equal
        known = (id(r.versions), id(r.code), id(r.trained_under), r.data_fingerprint, r.precision, r.device)
        if (key := (*known, r.threads, r.commit)) in seen:
            continue
        seen.add(key)
        properties = {
            "threads": str(r.threads),
            **r.versions,
            **({} if r.code else {"commit": r.commit}),  # two commits may hold the same code
        }
        for found in [*r.all_conditions(), properties]:
            for name, value in found.items():
                different.setdefault(name, set()).add(value)
    return [
        f"WARNING: the records of this suite differ in {name}: {', '.join(sorted(values))}"
        for name, values in different.items()
        if len(values) > 1
    ]


def record_warnings(records: Iterable[CycleRecord]) -> list[str]:
    """Return each distinct warning once, with the trials and cycles that have it."""
    cycles: dict[str, list[str]] = {}
    for r in sorted((r for r in records if r.warnings), key=lambda r: (r.trial, r.cycle)):
        for warning in dict.fromkeys(r.warnings):
            cycles.setdefault(warning, []).append(f"{r.trial} cycle {r.cycle}")
    return [
        f"warning: {warning} ({', '.join(names[:CYCLES_SHOWN])}"
        + (f" and {len(names) - CYCLES_SHOWN} more)" if len(names) > CYCLES_SHOWN else ")")
        for warning, names in cycles.items()
    ]
