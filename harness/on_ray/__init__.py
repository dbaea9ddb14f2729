"""The only package that imports Ray: Tune runs the trials, Data shards the scoring.

Ray reads these variables when it is imported, so they are set here, before any import of it.
"""

import os

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables by Tune: the harness prints its own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files by Tune
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial runs where Ray was started, not in a folder of its own
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune gives each trial its own environment, so a trial can't use a process that Ray starts in advance
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}.items():
    os.environ.setdefault(_name, _value)
