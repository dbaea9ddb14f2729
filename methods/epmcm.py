"""EPMCM: expected partial model change maximisation, DAST-AL's acquisition (Sec. 3.2, Eq. 5-7).

An image's score is the expected change of the classifier's bias under ISDA's augmented features a~ ~ N(a, Sigma_yhat),
yhat the predicted class. Closed form (Eq. 7): sum over j of exp(z_j - z_yhat + Q[yhat, j] / 2), minus 1, an upper
bound of the expectation in Eq. 6.

Known differences from the paper and its released code:
- Eq. 7 prints its "- 1" inside the exponent; it belongs outside. The order is the same.
- Images are ranked by the logarithm of the sum over j != yhat: the same order, without overflow and without ties
  between confident images.
- Where pixels have labels, the paper averages Eq. 7 over pixels. Here the average is over the places of the network's
  own map, one for 8 x 8 pixels of a DRN; ``resolution: image`` is the paper's.
- Plain images are scored; the released code scores augmented ones.
- The released code also feeds the scored images, under their predicted labels, into the running statistics while it
  scores. That makes scores depend on batch order, so it is an option (``pseudo_labels``), off by default.
- ``sampled`` (Eq. 5) samples logits, z~ ~ N(z, W Sigma W^T), which is the same distribution as sampling features and
  cheaper by A / C; the norm of the change of b is read as 1 - p_yhat, as the paper's Eq. 6 does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, PositiveInt, model_validator

from harness.lazy import torch
from harness.learning.contract import Acquisition, Training
from harness.settings import Strict

from ._class_statistics import ClassStatistics, fresh_table, logit_covariance
from ._uncertainty import log_mean_exp
from .isda import ISDA as _ISDA

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network

DRAWS_AT_ONCE = 64  # bounds the memory of the sampled form: draws x batch x classes
ROWS_AT_ONCE = 32  # bounds the memory of scoring pixels: batch x classes x rows x width of the image


class EPMCM(Acquisition):
    """Buys the images with the highest expected change of the classifier's bias."""

    class Settings(Strict):
        """How the covariance is estimated and the expectation is computed."""

        statistics: Literal["running", "fresh"] = Field(
            "running",
            description="running: ISDA's, of all training steps; fresh: of the labelled images under the final network",
        )
        form: Literal["closed", "sampled"] = Field("closed", description="Eq. 7, or Eq. 5 with M explicit samples")
        samples: PositiveInt = Field(1000, description="M of Eq. 5")
        pseudo_labels: bool = Field(False, description="feed scored images into the statistics, as released")
        resolution: Literal["map", "image"] = Field(
            "map", description="where pixels have labels, Eq. 7 is averaged over the map's places or the image's pixels"
        )

        @model_validator(mode="after")
        def _pseudo_labels_need_running(self) -> Any:
            if self.pseudo_labels and (self.statistics, self.form) != ("running", "closed"):
                raise ValueError("pseudo_labels: true needs statistics: running and form: closed")
            return self

        @model_validator(mode="after")
        def _pixels_need_the_closed_form(self) -> Any:
            if self.resolution == "image" and self.form != "closed":
                raise ValueError("resolution: image needs form: closed")
            return self

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Refuse running statistics where no training collects them."""
        if settings.statistics == "running" and not issubclass(training, _ISDA):
            raise ValueError(
                "epmcm with running statistics needs a training that collects them: training: isda (lambda_0: 0 is "
                "the plain loss), or statistics: fresh"
            )

    @classmethod
    def sequential(cls, settings: Any) -> bool:
        """With pseudo-labels each batch changes the statistics that the next is scored with."""
        return cast("bool", settings.pseudo_labels)

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the table Q (closed form) or the roots of the logit covariances (sampled)."""
        with torch.no_grad():
            if self.settings.pseudo_labels:
                # the training's own tensors: what scoring adds stays in the statistics, as released
                self._statistics = cast("_ISDA", cycle.training).statistics
                return {}
            if self.settings.statistics == "running":
                statistics, weight = cast("_ISDA", cycle.training).statistics, cycle.network.classifier.weight
                if self.settings.form == "closed":
                    return {"table": statistics.table(weight)}
                covariance = statistics.logit_covariance(weight)
            else:
                logits, labels = _plain_logits(cycle)
                if self.settings.form == "closed":
                    return {"table": fresh_table(logits, labels, self.num_classes)}
                covariance = logit_covariance(logits, labels, self.num_classes)
            return {"root": matrix_root(covariance)}

    _statistics: ClassStatistics

    def describe(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Columns:
        """Return the column ``score``: the logarithm of the expected change (closed form), or its estimate."""
        from harness.learning.labels import as_rows

        outputs = network(images)
        if self.settings.form == "sampled":
            changes = sampled(as_rows(outputs.logits), prepared["root"], self.settings.samples, generator)
            return {"score": changes.view(len(images), -1).mean(1)}
        if self.settings.pseudo_labels:
            self._statistics.update(as_rows(outputs.features), as_rows(outputs.logits).argmax(1))
            table = self._statistics.table(network.classifier.weight)
        else:
            table = prepared["table"]
        return {"score": log_mean_exp(self._log_changes(outputs.logits, table, images).view(len(images), -1))}

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Return the logarithm of the expected change of each place [B, *s] or pixel [B, H, W], in closed form."""
        if "table" not in prepared:
            return None
        return self._log_changes(network(images).logits, prepared["table"], images)

    def _log_changes(self, logits: torch.Tensor, table: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return log of Eq. 7 for logits [B, C, *s] of the images, at each place [B, *s] or each pixel [B, H, W]."""
        from harness.learning.labels import as_rows
        from harness.networks.maps import upsampled_bands

        def changes(maps: torch.Tensor) -> torch.Tensor:
            return log_change(as_rows(maps), table).view(len(maps), *maps.shape[2:])

        if self.settings.resolution == "map" or logits.ndim == 2:
            return changes(logits)
        height, width = images.shape[2:]
        return torch.cat([changes(band) for band in upsampled_bands(logits, (height, width), ROWS_AT_ONCE)], 1)


def log_change(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return log of Eq. 7 [N]: logsumexp over j != yhat of z_j - z_yhat + Q[yhat, j] / 2, for logits [N, C]."""
    highest, predicted = logits.max(1, keepdim=True)
    exponents = (logits - highest).add_((table / 2)[predicted[:, 0]])
    return exponents.scatter_(1, predicted, float("-inf")).logsumexp(1)


def sampled(logits: torch.Tensor, root: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Return the mean of 1 - p_yhat [B] over ``samples`` draws z~ ~ N(z, S_yhat), with root [C, C, C] of S (Eq. 5)."""
    predicted = logits.argmax(1)
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for start in range(0, samples, DRAWS_AT_ONCE):
        draws = min(DRAWS_AT_ONCE, samples - start)
        noise = torch.randn(len(logits), draws, logits.shape[1], generator=generator, device=logits.device)
        drawn = logits[:, None, :] + noise.to(logits.dtype) @ root[predicted]
        log_p = drawn.log_softmax(2).gather(2, predicted[:, None, None].expand(-1, draws, 1))
        total += -torch.expm1(log_p.double()).sum((1, 2))
    return total / samples


def matrix_root(covariance: torch.Tensor) -> torch.Tensor:
    """Return the symmetric root of each positive semi-definite matrix [..., C, C], which may be rank-deficient."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
    return root.to(covariance.dtype)


def _plain_logits(cycle: Cycle) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits [N, C], labels [N]) of the plain labelled images, or their places, under the cycle's network."""
    from harness.data.rows import taken
    from harness.learning.inference import inferred
    from harness.learning.labels import as_rows, at_places

    size = cycle.recipe.inference_batch_size
    logits = inferred(cycle, cycle.labelled, lambda images: cycle.network(images).logits, "the labelled images' logits")
    positions = torch.arange(len(logits), device=cycle.device).split(size)
    labels = zip(logits.split(size), taken(cycle.labels, positions), strict=True)
    every = torch.cat([at_places(known, found).flatten() for found, known in labels])
    known = every < logits.shape[1]
    return as_rows(logits)[known], every[known]
