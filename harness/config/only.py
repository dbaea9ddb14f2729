"""``--only``: a part of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable

from harness.config.suite import Benchmark, Suite
from harness.errors import UserError, did_you_mean


def only(benchmark: Benchmark, filters: Iterable[str]) -> Benchmark:
    """Return the part of a benchmark that ``--only suite=..., dataset=..., method=..., seed=...`` names.

    Values separated by commas are alternatives. Suites that run on request are left out unless ``suite=`` names them.
    Raises UserError for a value that nothing has.
    """
    filters = list(filters)
    suites = benchmark.suites
    if not any(text.startswith("suite=") for text in filters):
        suites = [s for s in suites if not s.on_request]
        if not suites:
            names = ", ".join(s.name for s in benchmark.suites)
            raise UserError(f"{benchmark.name}: its suites run on request: add --only suite=... ({names})")
    for text in filters:
        key, equals, written = text.partition("=")
        wanted = written.split(",")
        if key not in ("suite", "dataset", "method", "seed") or not equals:
            raise UserError(f"--only {text}: write suite=..., dataset=..., method=... or seed=...")
        have = {
            "suite": {s.name for s in suites},
            "dataset": {s.dataset.name for s in suites},
            "method": {label for s in suites for label in s.methods},
            "seed": {str(seed) for s in suites for seed in s.seeds},
        }[key]
        if unknown := [w for w in wanted if w not in have]:
            elsewhere = [s.name for s in benchmark.suites if s.on_request and unknown[0] in s.methods]
            hint = f"; suite={elsewhere[0]} has it, which runs on request" if elsewhere else ""
            raise UserError(f"--only {text}: no {key} is called {unknown[0]!r}{hint or did_you_mean(unknown[0], have)}")
        kept = []
        for s in suites:
            methods = {m: v for m, v in s.methods.items() if key != "method" or m in wanted}
            seeds = [seed for seed in s.seeds if key != "seed" or str(seed) in wanted]
            named = {"suite": s.name, "dataset": s.dataset.name}.get(key, wanted[0]) in wanted
            if methods and seeds and named:
                kept.append(Suite(**{**vars(s), "methods": methods, "seeds": seeds}))
        suites = kept
    return Benchmark(benchmark.name, suites, benchmark.where)
