"""MLflow: a run for each trial, in an experiment with the name of the config.

They go to MLFLOW_TRACKING_URI; without it, to track/mlruns of the results folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

for _name, _value in {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds, as the next two: a server that does not answer is asked again later
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - reads the variables
from mlflow.entities import Metric, Param  # noqa: E402

from harness.tracking.tracker import Trial  # noqa: E402

MOST_PARAMETERS = 100  # in one request
LONGEST = 6000  # characters of a parameter's value


class Tracker:
    """Sends a run for each trial, with the tags suite, method and seed, by which MLflow groups and filters."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
        self.client = MlflowClient(uri)
        self.created: dict[str, str] = {}
        """Id of a trial -> its run, also if a later request of ``begin`` failed."""

    def begin(self, trial: Trial, key: str) -> str:
        """Create a run, or set an earlier one to running."""
        if key:
            self.client.update_run(key, status="RUNNING")
            return key
        if trial.id not in self.created:
            found = self.client.get_experiment_by_name(self.project)
            experiment = found.experiment_id if found else self.client.create_experiment(self.project)
            tags = {"suite": trial.suite, "method": trial.method, "seed": str(trial.seed), "trial": trial.id}
            made = self.client.create_run(experiment, run_name=trial.name, tags=tags)
            self.created[trial.id] = made.info.run_id
        run = self.created[trial.id]
        parameters = [Param(key, str(value)[:LONGEST]) for key, value in trial.config.items()]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(run, params=parameters[first : first + MOST_PARAMETERS])
        return run

    def log(self, key: str, step: int, values: dict[str, float]) -> None:
        """Send all values at once."""
        now = int(1000 * time.time())
        self.client.log_batch(key, [Metric(name, value, now, step) for name, value in values.items()])

    def end(self, key: str, finished: bool) -> None:
        """Set the run's status."""
        self.client.set_terminated(key, "FINISHED" if finished else "FAILED")
