"""The settings of a config as typed, frozen classes: what is measured, and where it runs."""

from __future__ import annotations

from typing import Any, Literal

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


class Strict(BaseModel):
    """Settings that refuse unknown keys and non-finite numbers and can't be changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Strict):
    """The target network."""

    name: str = Field(
        description="one of harness/networks.py (resnet18_cifar, ...) or harness/drn.py (drn_d_22, ...), else any timm "
        "model"
    )
    initialisation: Literal["kaiming", "kaiming_zero_last", "pytorch"] = Field(
        "kaiming",
        description="timm's (a DRN's: its authors'), the same with a zero last gamma in each residual block, or "
        "PyTorch's default",
    )
    width: PositiveInt | None = Field(None, description="channels of the first stage; resnet_small and drn_small only")
    output_stride: Literal[8, 16, 32] | None = Field(
        None, description="pixels per position of the map of a timm model, for a dataset that labels pixels"
    )
    weights: str | None = Field(
        None,
        description="file with pretrained weights (PyTorch's or safetensors), on every node; all but the classifier's "
        "are taken over",
    )
    weights_sha256: str | None = Field(
        None, description="of that file: filled in, or checked; it and not the path is part of what is measured"
    )


class Recipe(Strict):
    """How every network of a suite is trained and run: the same for all methods."""

    epochs: PositiveInt
    batch_size: int = Field(128, ge=2, description="at least 2: batch norm can't normalise a single image")
    learning_rate: PositiveFloat = 0.1
    milestones: list[PositiveInt] = Field([], description="epochs at which the learning rate is multiplied by gamma")
    gamma: PositiveFloat = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    optimizer: Literal["sgd", "adam"] = "sgd"
    crop_padding: NonNegativeInt = Field(4, description="zero padding of the random crop, pixels; 0: no crop")
    crop_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[height, width] of the random crop; null: that of the images"
    )
    flip: bool = Field(True, description="random horizontal flip")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: autocast and channels_last; losses, class statistics and scores stay float32",
    )
    inference_batch_size: PositiveInt = 500
    compile: bool = Field(
        False,
        description="torch.compile the network, for whole batches: once per process, network and batch, and booked as "
        "a phase of its own; rounds differently",
    )
    deterministic: bool = Field(
        True, description="false: a GPU may use faster kernels, tried out first, that round differently in each run"
    )

    @field_validator("milestones")
    @classmethod
    def _milestones_ascend(cls, milestones: list[int], before: ValidationInfo) -> list[int]:
        epochs = before.data.get("epochs")
        if epochs and (milestones != sorted(set(milestones)) or any(m >= epochs for m in milestones)):
            raise ValueError(f"must ascend and stay below epochs ({epochs}), got {milestones}")
        return milestones


class Protocol(Strict):
    """The active-learning loop: the same for all methods."""

    initial: int = Field(ge=2, description="labelled images of cycle 0")
    budget: PositiveInt = Field(description="images bought after each cycle but the last")
    cycles: PositiveInt = Field(description="trainings; the last one has initial + (cycles - 1) x budget labels")
    candidates: PositiveInt | None = Field(
        None, description="size of the random subset that is ranked; null: all unlabelled images"
    )
    start: Literal["warm", "fresh"] = Field(
        description="warm: weights are carried from cycle to cycle; fresh: new weights"
    )
    initial_set: Literal["per_seed", "per_run"] = "per_seed"

    def labelled(self) -> list[int]:
        """Return the number of labelled images of each cycle."""
        return [self.initial + cycle * self.budget for cycle in range(self.cycles)]

    @field_validator("candidates")
    @classmethod
    def _budget_fits(cls, candidates: int | None, before: ValidationInfo) -> int | None:
        budget = before.data.get("budget")
        if candidates and budget and candidates < budget:
            raise ValueError(f"must be at least budget ({budget}), got {candidates}")
        return candidates


class Where(Strict):
    """Where and how a config runs on this machine or cluster; never part of what is measured."""

    output: str | None = Field(None, description="results folder; default runs/<name of the config>")
    data: str | None = Field(None, description="folder of the datasets; default $HARNESS_DATA, else ./data")
    download: bool = Field(False, description="download datasets that may be downloaded")
    trials: Literal["ray", "in_process"] = Field("ray", description="in_process: one after another, without Ray")
    address: str | None = Field(None, description="Ray cluster; default $RAY_ADDRESS, else a local Ray is started")
    dashboard: bool = Field(True, description="dashboard of a local Ray, on the loopback address")
    gpus_per_trial: float | None = Field(None, ge=0, le=1, description="default: 1 where there are GPUs, else 0")
    cpus_per_trial: PositiveInt = Field(1, description="also the number of torch threads of a trial")
    max_concurrent: PositiveInt | None = Field(None, description="trials at once; default: as many as fit")
    retries: NonNegativeInt = Field(2, description="how often a crashed trial goes on from its last finished cycle")
    scoring: Literal["auto", "in_process", "ray_data"] = Field(
        "auto", description="auto: Ray Data when the measured forward time makes it the faster way"
    )
    warm_workers: bool = Field(
        False,
        description="one process, with its scoring workers, runs many trials: saves seconds per trial; the dashboard "
        "then names workers",
    )
    shards: PositiveInt = Field(2, description="workers of the Ray Data path, for each trial")

    @model_validator(mode="after")
    def _ray_data_needs_ray(self) -> Where:
        if self.trials == "in_process" and self.scoring == "ray_data":
            raise ValueError("scoring: ray_data needs trials: ray, got trials: in_process")
        return self


class SuiteKeys(Strict):
    """The keys of a suite as they are written; datasets and methods are checked against their plug-ins."""

    title: str = ""
    dataset: Any
    model: Model
    recipe: Recipe
    protocol: Protocol
    methods: dict[str, Any] = Field(min_length=1, description="label -> method")
    seeds: list[NonNegativeInt] = Field(min_length=1)
    optional: bool = Field(False, description="skip the suite, by name, where its data is missing")
    on_request: bool = Field(False, description="run the suite only where --only names it")
    exclusive: bool = Field(False, description="one trial per device, so that seconds can be compared")

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"must differ, got {seeds}")
        return seeds
