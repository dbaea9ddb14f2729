"""Benchmark harness for deep active learning: config -> trials -> cycles -> records -> report.

The names below are what a notebook, a benchmark or a method needs; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.config.load import load_config as load_config
    from harness.config.load import load_dataset as load_dataset
    from harness.data.dataset import Dataset as Dataset
    from harness.data.dataset import DatasetInfo as DatasetInfo
    from harness.data.dataset import DatasetSettings as DatasetSettings
    from harness.data.dataset import LoadedData as LoadedData
    from harness.data.dataset import balanced as balanced
    from harness.data.dataset import spaced as spaced
    from harness.data.files import IGNORED as IGNORED
    from harness.data.files import Files as Files
    from harness.errors import DataMissing as DataMissing
    from harness.errors import UserError as UserError
    from harness.file_settings import file_content as file_content
    from harness.file_settings import file_digest as file_digest
    from harness.file_settings import file_setting as file_setting
    from harness.learning.contract import IMAGES as IMAGES
    from harness.learning.contract import MAPS as MAPS
    from harness.learning.contract import Acquisition as Acquisition
    from harness.learning.contract import Batch as Batch
    from harness.learning.contract import Training as Training
    from harness.learning.contract import highest as highest
    from harness.learning.cycle import Cycle as Cycle
    from harness.learning.fit import fit as fit
    from harness.learning.labels import cross_entropy as cross_entropy
    from harness.learning.labels import per_position as per_position
    from harness.networks.architecture import Architecture as Architecture
    from harness.networks.network import DenseNetwork as DenseNetwork
    from harness.networks.network import Network as Network
    from harness.networks.network import Stages as Stages
    from harness.report.load import load as load
    from harness.settings import ModelSettings as ModelSettings
    from harness.settings import Strict as Strict
    from harness.trial import ActiveLearner as ActiveLearner

__version__ = "0.1.0"

# In a checkout the plug-in folders are next to this package, where a reader looks for them; a wheel has them inside.
# Both import them as harness.methods and harness.datasets: a foreign package called datasets (Hugging Face's) can be
# installed, and imported first.
if not (Path(__file__).resolve().parent / "methods").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))

_FACE = {
    "Acquisition": "harness.learning.contract",
    "ActiveLearner": "harness.trial",
    "Architecture": "harness.networks.architecture",
    "Batch": "harness.learning.contract",
    "Cycle": "harness.learning.cycle",
    "DataMissing": "harness.errors",
    "Dataset": "harness.data.dataset",
    "DatasetInfo": "harness.data.dataset",
    "DatasetSettings": "harness.data.dataset",
    "DenseNetwork": "harness.networks.network",
    "Files": "harness.data.files",
    "IGNORED": "harness.data.files",
    "IMAGES": "harness.learning.contract",
    "LoadedData": "harness.data.dataset",
    "MAPS": "harness.learning.contract",
    "ModelSettings": "harness.settings",
    "Network": "harness.networks.network",
    "Stages": "harness.networks.network",
    "Strict": "harness.settings",
    "Training": "harness.learning.contract",
    "UserError": "harness.errors",
    "balanced": "harness.data.dataset",
    "cross_entropy": "harness.learning.labels",
    "file_content": "harness.file_settings",
    "file_digest": "harness.file_settings",
    "file_setting": "harness.file_settings",
    "fit": "harness.learning.fit",
    "highest": "harness.learning.contract",
    "load": "harness.report.load",
    "load_config": "harness.config.load",
    "load_dataset": "harness.config.load",
    "per_position": "harness.learning.labels",
    "spaced": "harness.data.dataset",
}

__all__ = [*_FACE]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(import_module(_FACE[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
