"""Trackers: TensorBoard, MLflow, W&B, trackio and a CSV file are sent the finished cycles of a run.

The records in the results folder are the queue. Each tracker has a process of its own, which reads the records that it
has not sent yet, so that a tracker that fails, hangs or is slow costs no cycle: a run only writes to a pipe that never
blocks. What a tracker lacks it gets once it answers, or by the next ``--resume``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from harness.errors import UserError

PACKAGES = {
    "csv": ("csv", ""),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "tensorboard": ("tensorboardX", "tensorboardX tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
"""Name of a tracker -> (the module that it imports, what pip installs); a tracker is the class Tracker in a file of
this name."""

FLUSH = 10.0
"""Seconds that trackers have at the end of a run for what they still lack."""
LATE = f"no answer within {FLUSH:.0f} s of the end of the run"


def check(names: Iterable[str]) -> None:
    """Raise UserError if a tracker's package is missing."""
    for name in names:
        module, install = PACKAGES[name]
        if find_spec(module) is None:
            raise UserError(f"where.track: {name} needs the package {module}: pip install {install}")
