"""The script that compares two versions of the code finds every difference."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from golden import COMPARED, as_compared, differences

RECORD: dict[str, Any] = {
    "cycle": 1,
    "labelled": 40,
    "selected": [3, 1],
    "metrics": {"accuracy": 0.5},
    "final_loss": 1.25,
    "per_class": {},
    "health": {"kl_nats": 0.1},
    "initial_set": [],
    "warnings": ["one"],
    "seconds": {"train": 3.0},
}


def test_equal_records_have_no_difference() -> None:
    other = RECORD | {"seconds": {"train": 4.0}, "warnings": ["said otherwise"]}
    assert differences({"a": [as_compared(RECORD)]}, {"a": [as_compared(other)]}) == []


def test_records_of_version_1_are_compared_under_their_new_names() -> None:
    old = {
        {"metrics": "figures", "selected": "chosen", "initial_set": "own_initial_set"}.get(k, k): RECORD[k]
        for k in RECORD
    }
    assert as_compared(old) == as_compared(RECORD)


@pytest.mark.parametrize("key", COMPARED)
def test_any_other_value_is_a_difference(key: str) -> None:
    expected, changed = as_compared(RECORD), as_compared(RECORD)
    changed[key] = deepcopy("other")
    (line,) = differences({"a": [expected]}, {"a": [changed]})
    assert line.startswith(f"a, cycle 1: {key} ")


def test_absent_trials_and_cycles_are_differences() -> None:
    one = [as_compared(RECORD)]
    assert differences({"a": one, "b": one}, {"a": one}) == ["b: only one version has it"]
    assert differences({"a": one}, {"a": [*one, *one]}) == ["a: 1 cycles, now 2"]
