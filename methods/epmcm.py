"""EPMCM: expected partial model change maximisation, DAST-AL's acquisition (Sec. 3.2, Eq. 5-7).

An image's score is the expected change of the classifier's bias under ISDA's augmented features a~ ~ N(a, Sigma_yhat),
where yhat is the predicted class. The closed form (Eq. 7) is the sum over j of exp(z_j - z_yhat + Q[yhat, j] / 2),
minus 1. It is an upper bound of the expectation in Eq. 6.

Known differences from the paper and its released code:
- Eq. 7 is printed with "- 1" inside the exponent, but it belongs outside. The order is the same.
- Images are ranked by the logarithm of the sum over j != yhat. The order is the same, but there is no overflow and no
  tie between confident images.
- If pixels have labels, the paper averages Eq. 7 over pixels. Here the average is over the positions of the network's
  map (for a DRN, one per 8 x 8 pixels); ``resolution: image`` averages over pixels.
- Images are scored without augmentation; the released code scores augmented images.
- The released code also adds the scored images, with their predicted labels, to the running statistics during scoring.
  Scores then depend on the order of the batches, so this is an option (``pseudo_labels``), off by default. The batches
  are those of scoring, in the order in which the candidates were drawn.
- ``sampled`` (Eq. 5) samples logits, z~ ~ N(z, W Sigma W^T), which have the same distribution as those of sampled
  features, but cost less by a factor of A / C (A: feature dimension, C: classes). The norm of the change of the bias b
  is 1 - p_yhat, as in the paper's Eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from harness.data.rows import take
from harness.errors import NonFiniteLoss
from harness.lazy import torch
from harness.learning.contract import IMAGES, Acquisition, Batch, highest
from harness.learning.inference import inferred
from harness.learning.labels import as_rows, at_positions, per_position
from harness.networks.maps import upsampled_bands
from harness.settings import Steps, Strict

from ._class_statistics import ClassStatistics, blocks, fresh_table, logit_covariance
from ._uncertainty import log_mean_exp

if TYPE_CHECKING:
    from harness.learning.contract import Ahead, Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network

DRAWS_AT_ONCE = 64  # limits the memory of the sampled form: draws x batch x classes
ROWS_AT_ONCE = 32  # limits the memory of scoring pixels: batch x classes x rows x width of the image


class EPMCM(Acquisition):
    """Selects the images with the highest expected change of the classifier's bias."""

    class Settings(Strict):
        """How the covariance is estimated, and how the expectation is computed."""

        statistics: Literal["running", "fresh"] = Field(
            "running", description="running: ISDA's, of all steps; fresh: from labelled images and the final network"
        )
        form: Literal["closed", "sampled"] = Field("closed", description="Eq. 7, or Eq. 5 with M explicit samples")
        samples: Steps = Field(1000, description="M of Eq. 5")
        pseudo_labels: bool = Field(False, description="add scored images to the statistics, as released")
        resolution: Literal["map", "image"] = Field(
            "map", description="if pixels have labels: average Eq. 7 over the map's positions or the image's pixels"
        )

        @model_validator(mode="after")
        def _pseudo_labels_need_running(self) -> Any:
            if self.pseudo_labels and (self.statistics, self.form) != ("running", "closed"):
                raise ValueError("pseudo_labels: true needs statistics: running and form: closed")
            return self

        @model_validator(mode="after")
        def _samples_need_the_sampled_form(self) -> Any:
            if self.form != "sampled" and self.samples != type(self).model_fields["samples"].default:
                raise ValueError(f"samples: {self.samples} needs form: sampled, form: {self.form} draws none")
            return self

        @model_validator(mode="after")
        def _pixels_need_the_closed_form(self) -> Any:
            if self.resolution == "image" and self.form != "closed":
                raise ValueError("resolution: image needs form: closed")
            return self

    settings: Settings

    @classmethod
    def needed(cls, settings: Any) -> frozenset[str]:
        """Return the covariance, unless it is estimated afresh."""
        return frozenset({"covariance"}) if settings.statistics == "running" else cls.needs

    @classmethod
    def labels(cls, settings: Any) -> frozenset[str]:
        """Return IMAGES with pseudo-labels: for maps, the features of all candidates would need too much memory."""
        return frozenset({IMAGES}) if settings.pseudo_labels else super().labels(settings)

    @classmethod
    def memory(cls, settings: Any, ahead: Ahead, features: int) -> int:
        """Return the bytes of the roots of the logit covariances, a matrix for each class, in the sampled form."""
        return 4 * ahead.info.num_classes**3 if settings.form == "sampled" else 0

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the table Q (closed form) or the roots of the logit covariances (sampled)."""
        closed, weight = self.settings.form == "closed", cycle.network.classifier.weight.detach()
        if self.settings.pseudo_labels:
            self._cycle = cycle
            return {}
        if self.settings.statistics == "fresh":
            logits, labels = _labelled_logits(cycle)
            estimate: Any = fresh_table if closed else logit_covariance
            statistic = estimate(logits, labels, self.num_classes)
        else:
            statistics = ClassStatistics.of(cycle.learned)
            statistic = statistics.table(weight) if closed else statistics.logit_covariance(weight)
        if closed:
            return {"table": statistic}
        for block in statistic.split(blocks(self.num_classes**2)):
            block.copy_(matrix_root(block))
        return {"root": statistic}

    def describe(self, network: Network, batch: Batch, prepared: Columns) -> Columns:
        """Return the column ``score``, the log of Eq. 7 or the estimate of Eq. 5, at each position or pixel.

        With pseudo-labels, return ``features`` [B, D] and ``logits`` [B, C]: a score depends on all earlier images.
        """
        outputs = network(batch.images)
        if self.settings.pseudo_labels:
            return {"features": outputs.features, "logits": outputs.logits}
        if self.settings.form == "sampled":
            draws = self.settings.samples, batch.generator
            return {"score": per_position(lambda rows: sampled(rows, prepared["root"], *draws), outputs.logits)}

        def changes(maps: torch.Tensor) -> torch.Tensor:
            return per_position(lambda rows: log_change(rows, prepared["table"]), maps)

        if self.settings.resolution == "map" or outputs.logits.ndim == 2:
            return {"score": changes(outputs.logits)}
        height, width = batch.images.shape[2:]
        bands = upsampled_bands(outputs.logits, (height, width), ROWS_AT_ONCE)
        return {"score": torch.cat([changes(band) for band in bands], 1)}

    def over_positions(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the score [B] of images: the mean of Eq. 5, or the log of the mean of Eq. 7."""
        return scores.mean(1) if self.settings.form == "sampled" else log_mean_exp(scores)

    _cycle: Cycle

    def select(
        self, columns: Columns, labelled: Callable[[], Columns], budget: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the rows of the highest scores.

        With pseudo-labels, each batch is first added to the training's statistics, and then scored with them.
        """
        if not self.settings.pseudo_labels:
            return super().select(columns, labelled, budget, generator)
        cycle, statistics = self._cycle, ClassStatistics.of(self._cycle.learned)
        drawn = torch.searchsorted(columns["index"], cycle.candidates)
        score = columns["logits"].new_empty(len(drawn))
        for rows in drawn.split(cycle.recipe.inference_batch_size):
            logits = columns["logits"][rows]
            statistics.update(columns["features"][rows], logits.argmax(1))
            score[rows] = log_change(logits, statistics.table(cycle.network.classifier.weight.detach()))
        if score.isnan().any():
            raise NonFiniteLoss(f"cycle {cycle.number}: epmcm's score is not a number")
        for name, tensor in statistics.state().items():
            cycle.learned[name].copy_(tensor)  # as released, the training continues with them
        return highest(score, budget)


def log_change(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the log of Eq. 7 [N]: logsumexp over j != yhat of z_j - z_yhat + Q[yhat, j] / 2, for logits [N, C]."""
    highest, predicted = logits.max(1, keepdim=True)
    exponents = (logits - highest).add_((table / 2)[predicted[:, 0]])
    return exponents.scatter_(1, predicted, float("-inf")).logsumexp(1)


def sampled(logits: torch.Tensor, root: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Return the mean [B] of 1 - p_yhat over ``samples`` draws z~ ~ N(z, S_yhat), with root [C, C, C] of S (Eq. 5)."""
    predicted = logits.argmax(1)
    rows = blocks(root[0].numel())
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for start in range(0, samples, DRAWS_AT_ONCE):
        draws = min(DRAWS_AT_ONCE, samples - start)
        noise = torch.randn(len(logits), draws, logits.shape[1], generator=generator, device=logits.device)
        parts = zip(noise.to(logits.dtype).split(rows), predicted.split(rows), strict=True)
        drawn = logits[:, None, :] + torch.cat([part @ root[classes] for part, classes in parts])
        log_p = drawn.log_softmax(2).gather(2, predicted[:, None, None].expand(-1, draws, 1))
        total += -torch.expm1(log_p.double()).sum((1, 2))
    return total / samples


def matrix_root(covariance: torch.Tensor) -> torch.Tensor:
    """Return a square root of each positive semi-definite matrix [..., C, C], which may be rank-deficient."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
    return root.to(covariance.dtype)


def _labelled_logits(cycle: Cycle) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits [N, C], labels [N]) of the labelled images, or of their positions, for the cycle's network."""
    size = cycle.recipe.inference_batch_size
    logits = inferred(cycle, cycle.labelled, lambda images: cycle.network(images).logits, "the labelled images' logits")
    positions = torch.arange(len(logits), device=cycle.device).split(size)
    labels = zip(logits.split(size), take(cycle.labels, positions), strict=True)
    targets = torch.cat([at_positions(label, scores).flatten() for scores, label in labels])
    known = targets < logits.shape[1]
    return as_rows(logits)[known], targets[known]
