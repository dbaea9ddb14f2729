"""The settings of a config as typed, frozen classes: the experiments, and where they run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

LONGEST_TEXT = 4096  # characters of a setting; Linux allows no longer path
LONGEST_NAME = 100  # characters of the name of a suite, a method, a plug-in or a class
LONGEST_LIST = 1000  # entries of a setting


class Strict(BaseModel):
    """Base of all settings: immutable; unknown keys, non-finite numbers and endless texts are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=LONGEST_TEXT)


@dataclass(frozen=True)
class Why:
    """The reason of a number's upper bound; a message about the number states it."""

    reason: str


# Kinds of numbers, each bounded far above what is sensible, so that a slip is a sentence and not an endless run.
ImageCount = Annotated[PositiveInt, Field(le=10**9), Why("no pool has more images")]
Rounds = Annotated[PositiveInt, Field(le=10**6), Why("more would take years")]
Steps = Annotated[PositiveInt, Field(le=10**9), Why("more would take years")]
BatchSize = Annotated[PositiveInt, Field(le=10**6), Why("no device holds more")]
Channels = Annotated[PositiveInt, Field(le=10**4), Why("no device holds larger layers")]
Parts = Annotated[PositiveInt, Field(le=1000), Why("no device holds more")]
Side = Annotated[PositiveInt, Field(le=10**4), Why("no device holds larger images")]
Rate = Annotated[PositiveFloat, Field(le=10**6), Why("training would diverge")]
Weight = Annotated[NonNegativeFloat, Field(le=10**6), Why("losses would not be finite")]
Pixel = Annotated[float, Field(ge=0, le=1), Why("pixels are scaled to 0..1")]
Spread = Annotated[PositiveFloat, Field(le=1), Why("pixels are scaled to 0..1")]
Area = Annotated[PositiveFloat, Field(le=1), Why("it is a share of the image")]
Aspect = Annotated[PositiveFloat, Field(le=100), Why("no image is as narrow")]
Seed = Annotated[NonNegativeInt, Field(le=2**32 - 1), Why("seeds have 32 bits")]


def inert(default: Any, **keys: Any) -> Any:
    """Return a field that affects how results are computed but not the results: trial ids ignore it."""
    return Field(default, json_schema_extra={"inert": True}, **keys)


def is_inert(settings: type[BaseModel], key: str) -> bool:
    """Return whether the field ``key`` was declared with ``inert``."""
    extra = settings.model_fields[key].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("inert"))


def decisive(settings: BaseModel) -> dict[str, Any]:
    """Return the settings that affect results and differ from their defaults, as JSON values.

    Defaults are left out so that trial ids stay the same when a setting is added, with a default, later.
    """
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in values.items() if not is_inert(type(settings), key)}


@dataclass(frozen=True)
class PluginSpec:
    """The name of a plug-in and its settings."""

    name: str
    settings: Any

    def written(self) -> dict[str, Any]:
        """Return the plug-in as a mapping for YAML, with all defaults filled in."""
        return {"name": self.name, **self.settings.model_dump(mode="json")}

    def decisive(self) -> dict[str, Any]:
        """Return the name and the settings that affect results and differ from their defaults."""
        return {"name": self.name, **decisive(self.settings)}


class ModelSettings(Strict):
    """Settings that all networks have; the Settings of a network inherit from this class."""

    initialisation: Literal["kaiming", "kaiming_zero_last", "pytorch"] = Field(
        "kaiming",
        description="kaiming: the network's own (for a model of timm: timm's; for a DRN: that of its authors), with "
        "gamma 1 in the last batch norm of each residual block; kaiming_zero_last: the same, but with gamma 0 there; "
        "pytorch: PyTorch's default",
    )
    weights: str | None = inert(
        None,
        description="pretrained weights, loaded into all layers except the classifier: a file (PyTorch or "
        "safetensors), under the same path on every node; or the word pretrained: those that timm names for its model, "
        "or those of the extra [pretrained]",
    )
    weights_sha256: str | None = Field(
        None,
        description="SHA-256 of the file in weights: filled in if absent, else checked; trial ids depend on it, not on "
        "the path",
    )
    weights_mean: tuple[Pixel, ...] | None = Field(
        None,
        max_length=LONGEST_LIST,
        description="mean of each channel, of pixels scaled to 0..1, by which the weights want images normalised; "
        "filled in with weights: pretrained; null: the dataset's",
    )
    weights_std: tuple[Spread, ...] | None = Field(
        None, max_length=LONGEST_LIST, description="standard deviation of each channel, like weights_mean"
    )
    input_size: tuple[Side, Side] | None = Field(
        None,
        description="[height, width] to which the network scales its images up (bicubic, antialiased), on the device; "
        "null: the size of the images; for datasets with image labels only",
    )


class RandomResizedCrop(Strict):
    """A random part of an image, resized (Szegedy et al. 2015, Going Deeper with Convolutions, Sec. 6)."""

    scale: tuple[Area, Area] = Field((0.08, 1.0), description="lowest and highest area, as a share of the image's")
    ratio: tuple[Aspect, Aspect] = Field((3 / 4, 4 / 3), description="lowest and highest width / height")

    @field_validator("scale", "ratio")
    @classmethod
    def _ascend(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"must ascend, got {[*bounds]}")
        return bounds


class Recipe(Strict):
    """Training and inference of a suite's networks, the same for all methods."""

    epochs: Rounds = Field(description="passes over the labelled images in each cycle")
    batch_size: BatchSize = Field(
        128, ge=2, description="training images per step; at least 2, because batch norm can't normalise one image"
    )
    learning_rate: Rate = Field(0.1, description="learning rate of the first epoch of each cycle")
    milestones: list[Rounds] = Field(
        [],
        max_length=LONGEST_LIST,
        description="epochs, counted from 0, at whose start the learning rate is multiplied by gamma",
    )
    gamma: Rate = Field(0.1, description="factor of the learning rate at each milestone")
    warmup_epochs: Annotated[NonNegativeInt, Field(le=10**6), Why("more would take years")] = Field(
        0,
        description="first epochs of each cycle in which the learning rate grows from 0 to its full value, by the same "
        "amount at each step",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; Adam ignores it")
    weight_decay: Annotated[NonNegativeFloat, Field(le=1000), Why("training would diverge")] = Field(
        5e-4, description="L2 penalty of all parameters"
    )
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="each cycle starts a new optimizer")
    crop_padding: Annotated[NonNegativeInt, Field(le=1000), Why("no device holds larger images")] = Field(
        4, description="zero padding on each side before the random crop, in pixels; 0 without crop_size: no crop"
    )
    crop_size: tuple[Side, Side] | None = Field(
        None, description="[height, width] of the random crop, in pixels; null: the size of the images"
    )
    random_resized_crop: RandomResizedCrop | None = Field(
        None,
        description="in place of the padded crop: a random part of each training image, of random area (scale: "
        "[0.08, 1]) and aspect ratio (ratio: [3/4, 4/3]), resized to crop_size (bilinear, antialiased); {} has these "
        "defaults; for datasets with image labels only",
    )
    center_crop: tuple[Side, Side] | None = Field(
        None,
        description="[height, width] of the centre of an image that tests and scoring see; null: the whole image; for "
        "datasets with image labels only",
    )
    flip: bool = Field(True, description="random horizontal flip of training images")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast and channels_last memory; losses, class statistics and scores stay float32",
    )
    inference_batch_size: BatchSize = Field(500, description="images per batch in tests and scoring")
    compile: bool = Field(
        False,
        description="run full batches through torch.compile; compilation happens once per process, network and batch "
        "size, is timed as a separate phase, and changes rounding",
    )
    deterministic: bool = Field(
        True,
        description="false: a GPU may use faster kernels, chosen by timing them, whose rounding varies from run to run",
    )

    def tested(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return [height, width] of what tests and scoring see of images of a size."""
        return self.center_crop or size

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, milestones: list[int], before: ValidationInfo) -> list[int]:
        epochs = before.data.get("epochs")
        if epochs and (milestones != sorted(set(milestones)) or any(m >= epochs for m in milestones)):
            raise ValueError(f"must ascend and stay below epochs ({epochs}), got {milestones}")
        return milestones

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_ends(cls, warmup_epochs: int, before: ValidationInfo) -> int:
        if warmup_epochs > before.data.get("epochs", warmup_epochs):
            raise ValueError(f"must be at most epochs ({before.data['epochs']}), got {warmup_epochs}")
        return warmup_epochs


class Protocol(Strict):
    """The active-learning loop of a suite, the same for all methods."""

    initial: ImageCount = Field(ge=2, description="number of labelled images in cycle 0")
    budget: ImageCount = Field(description="number of images selected after each cycle except the last")
    cycles: Annotated[PositiveInt, Field(le=10**4), Why("more would take years")] = Field(
        description="number of cycles; the last one trains on initial + (cycles - 1) x budget labelled images"
    )
    candidates: ImageCount | None = Field(
        None, description="size of the random subset of unlabelled images to select from; null: all of them"
    )
    start: Literal["warm", "fresh"] = Field(
        description="warm: a cycle starts from the weights of the previous cycle; fresh: from new weights"
    )
    initial_set: Literal["per_seed", "per_run"] = Field(
        "per_seed", description="labelled images of cycle 0; per_seed: one set per seed; per_run: one set for all seeds"
    )

    def labelled(self) -> list[int]:
        """Return the number of labelled images in each cycle."""
        return [self.initial + cycle * self.budget for cycle in range(self.cycles)]

    @field_validator("candidates")
    @classmethod
    def _budget_fits(cls, candidates: int | None, before: ValidationInfo) -> int | None:
        budget = before.data.get("budget")
        if candidates and budget and candidates < budget:
            raise ValueError(f"must be at least budget ({budget}), got {candidates}")
        return candidates


class Where(Strict):
    """Where and how a config runs: folders, devices, processes. Trial ids do not depend on these settings."""

    output: str | None = Field(
        None,
        description="results folder; a relative path is below the current folder, not the config's; default: "
        "runs/<file name of the config without .yaml>",
    )
    data: str | None = Field(None, description="folder with all datasets; default: $HARNESS_DATA, else ./data")
    download: bool = Field(
        False, description="download missing datasets and timm's pretrained weights, where that is supported"
    )
    prepared: bool | Annotated[str, Field(min_length=1)] = Field(
        True,
        description="folder in which images of files that are resized are kept as they are used, for all trials and "
        "later runs; true: the cache folder, up to 50 GB for a dataset; false: they are decoded each time",
    )
    trials: Literal["ray", "in_process"] = Field(
        "ray", description="ray: in parallel, on Ray; in_process: one after another, without Ray"
    )
    address: str | None = Field(
        None, description="address of a Ray cluster; default: $RAY_ADDRESS, else a local Ray is started"
    )
    dashboard: bool = Field(True, description="start the dashboard of a local Ray, reachable from this machine only")
    gpus_per_trial: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs that a trial reserves, may be a fraction; default: 1 if there are GPUs, else 0",
    )
    cpus_per_trial: Annotated[PositiveInt, Field(le=1024), Why("no machine has more")] = Field(
        1, description="CPU cores that a trial reserves, and its number of torch threads"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the trials; auto: GPUs if there are any, else CPUs"
    )
    max_concurrent: Annotated[PositiveInt, Field(le=10**5), Why("no cluster runs more")] | None = Field(
        None, description="highest number of trials that run at the same time; default: as many as the resources allow"
    )
    retries: Annotated[NonNegativeInt, Field(le=1000), Why("more would take years")] = Field(
        2,
        description="how many times a trial whose process died is restarted, from its last checkpoint or finished "
        "cycle, and how many times a Ray that died is started again before another cycle is finished",
    )
    checkpoint_minutes: Annotated[float, Field(ge=0, le=10**6), Why("a cycle takes no year")] = Field(
        10.0,
        description="minutes between checkpoints within a cycle, from which a new process goes on if that of the trial "
        "died; 0: no checkpoints within a cycle",
    )
    stalled_after: Annotated[float, Field(gt=0, le=10**7), Why("a run takes no year")] = Field(
        1800.0,
        description="seconds without any progress after which a trial's process is ended and started again; after half "
        "of them it is shown as stalled; less than 10, two heartbeats, count as 10",
    )
    scoring: Literal["auto", "in_process", "ray_data"] = Field(
        "auto",
        description="in_process: candidates are scored in the trial's process; ray_data: on Ray Data workers; auto: on "
        "workers once the measured forward time predicts that they are faster",
    )
    warm_workers: bool = Field(
        False,
        description="reuse a process and its scoring workers for many trials, which saves seconds per trial; the Ray "
        "dashboard then names trials in the list of a node's processes, not in that of actors",
    )
    shards: Annotated[PositiveInt, Field(le=1024), Why("no machine has more cores")] = Field(
        2, description="Ray Data scoring workers of each trial"
    )

    notify: str | None = Field(
        None,
        description="shell command that runs once when the run has ended, with the text in HARNESS_MESSAGE and on "
        "stdin; it may take 20 s",
    )

    track: list[Literal["csv", "mlflow", "tensorboard", "trackio", "wandb"]] = Field(
        [],
        max_length=LONGEST_LIST,
        description="trackers that are sent every finished cycle, such as [tensorboard, mlflow]; a tracker that fails "
        "or is slow costs no cycle",
    )

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker_needs_no_list(cls, track: Any) -> Any:
        return [track] if isinstance(track, str) else track

    @field_validator("track")
    @classmethod
    def _trackers_differ(cls, track: list[str]) -> list[str]:
        if len(set(track)) != len(track):
            raise ValueError(f"must differ, got {track}")
        return track

    @model_validator(mode="after")
    def _gpus_need_a_gpu(self) -> Where:
        if self.device == "cpu" and self.gpus_per_trial:
            raise ValueError(f"gpus_per_trial must be 0 with device: cpu, got {self.gpus_per_trial:g}")
        return self

    @model_validator(mode="after")
    def _ray_data_needs_ray(self) -> Where:
        if self.trials == "in_process" and self.scoring == "ray_data":
            raise ValueError("scoring: ray_data needs trials: ray, got trials: in_process")
        return self

    def cluster(self) -> tuple[str, str] | None:
        """Return (address of the Ray cluster to join, what names it), or None if a local Ray is to be started."""
        for name, value in (("where.address", self.address), ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))):
            if value and value.strip():
                return None if value.strip() == "local" else (value.strip(), name)
        return None


class Primary(Strict):
    """The comparison that a suite is made for."""

    method: str = Field(description="name of the method that may be better")
    reference: str = Field(description="name of the method that it is compared with")


class SuiteKeys(Strict):
    """The keys of a suite as written in a config; plug-ins check ``dataset``, ``model`` and ``methods``."""

    title: str = Field("", max_length=200, description="title in reports; default: the suite's name")
    dataset: Any = Field(description="a dataset: its name, or a mapping of name and settings")
    model: Any = Field(description="a network: its name, or a mapping of name and settings")
    recipe: Recipe
    protocol: Protocol
    methods: dict[str, Any] = Field(
        min_length=1,
        max_length=LONGEST_LIST,
        description="name in reports -> method: a plug-in, or a mapping of training and acquisition",
    )
    seeds: list[Seed] = Field(min_length=1, max_length=LONGEST_LIST, description="each method runs once with each seed")
    optional: bool = Field(
        False, description="if the suite's data is missing, skip the suite with a message and run the others"
    )
    on_request: bool = Field(False, description="run the suite only if --only suite=NAME names it")
    exclusive: bool = Field(
        False, description="run one trial per device at a time, so that wall-clock times are comparable"
    )
    full_data: bool = Field(
        False,
        description="also train once per seed on all training images, by cross-entropy: a row of the table, and a "
        "horizontal line of the learning curves",
    )
    primary: Primary | None = Field(
        None,
        description="the comparison that the suite is made for, tested at 5 %; the report corrects all others for "
        "their number, and compares every method with its reference, or with the first method",
    )
    equal_within: Annotated[float, Field(gt=0, le=100), Why("a metric has 100 points")] | None = Field(
        None,
        description="difference in points of the area under the curve within which two methods count as equal; "
        "default: no claim that methods are equal",
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"must differ, got {seeds}")
        return seeds
