"""The only package that imports Ray: Tune runs the trials, Data shards the scoring.

Ray reads these variables when it is imported, so they are set here, before any import of it.
"""

import os

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: we print one of our own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its CSV, JSON and TensorBoard files: our store is the record
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a config keep their meaning in a trial
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # a trial never runs in a process that Ray starts in advance: Tune gives it an environment of its own
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}.items():
    os.environ.setdefault(_name, _value)


def prepare(joining: bool) -> None:
    """Choose token authentication, before Ray is imported: always for a Ray of our own, else where a token is given."""
    if not joining or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
