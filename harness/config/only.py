"""The command line option ``--only``, which selects a part of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from harness.config.source import TOP_LEVEL
from harness.config.suite import Benchmark, Suite
from harness.errors import UserError, did_you_mean

FILTERS = ("suite", "dataset", "method", "seed")


def is_override(text: str) -> bool:
    """Return whether a word after ``--only`` sets a value of the config, such as recipe.epochs=2, and is no filter."""
    key, equals, _ = text.partition("=")
    return bool(equals) and key not in FILTERS and ("." in key or key in TOP_LEVEL)


def only(benchmark: Benchmark, filters: Iterable[str]) -> Benchmark:
    """Return the part of a benchmark that matches all filters, such as ``suite=A``, ``method=X,Y`` or ``seed=0``.

    Keys are suite, dataset, method and seed; values separated by commas are alternatives. Suites with
    ``on_request: true`` are left out unless ``suite=`` names them. Raises UserError for a value that matches nothing.
    """
    filters = list(filters)
    suites = benchmark.suites
    if not any(text.startswith("suite=") for text in filters):
        suites = [s for s in suites if not s.on_request]
        if not suites:
            names = ", ".join(s.name for s in benchmark.suites)
            raise UserError(
                f"{benchmark.name}: all suites have on_request: true; add --only suite=NAME, allowed: {names}"
            )
    for text in filters:
        key, equals, written = text.partition("=")
        if key not in FILTERS or not equals:
            raise UserError(
                f"--only {text}: write suite=..., dataset=..., method=... or seed=..."
                f"{did_you_mean(key, FILTERS) if equals else ''}"
            )
        allowed = {
            "suite": {s.name for s in suites},
            "dataset": {s.dataset.name for s in suites},
            "method": {method for s in suites for method in s.methods},
            "seed": {str(seed) for s in suites for seed in s.seeds},
        }[key]
        values = [written] if written in allowed else written.split(",")  # a name may have a comma
        if unknown := [value for value in values if value not in allowed]:
            elsewhere = [s.name for s in benchmark.suites if s.on_request and unknown[0] in s.methods]
            hint = f"; suite {elsewhere[0]} has it: add --only suite={elsewhere[0]}" if elsewhere else ""
            hint = hint or did_you_mean(unknown[0], allowed)
            raise UserError(f"--only {text}: no {key} is called {unknown[0]!r}{hint}")
        kept = []
        for s in suites:
            methods = {m: halves for m, halves in s.methods.items() if key != "method" or m in values}
            seeds = [seed for seed in s.seeds if key != "seed" or str(seed) in values]
            matches = {"suite": s.name, "dataset": s.dataset.name}.get(key, values[0]) in values
            if methods and seeds and matches:
                parts = {"methods": methods, "seeds": seeds}  # primary stays: others wait for it also in a part
                full_data = s.full_data and key != "method"
                kept.append(Suite(**{**vars(s), **parts, "full_data": full_data}))
        suites = kept
    return replace(benchmark, suites=suites)
