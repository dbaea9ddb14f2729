"""Whole trials of DAST-AL in float64, in lockstep with a plain implementation of its authors' procedure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import make_trial, spec

from harness.data.dataset import LoadedData
from harness.learning import boundary
from harness.learning.contract import Acquisition, Training
from harness.trial import ActiveLearner

CLASSES, EPOCHS, MILESTONE, BATCH, SCORED_AT_ONCE = 10, 4, 3, 16, 64
RATE, MOMENTUM, DECAY, LAMBDA_0 = 0.05, 0.9, 5e-4, 2.0


class Authors:
    """ISDA and EPMCM sample by sample, from the paper (Eq. 3 and 7) and the released procedure; nothing of harness/."""

    def __init__(self, body: Any, diagonal: bool, pseudo_labels: bool) -> None:
        self.body, self.diagonal, self.pseudo_labels = body, diagonal, pseudo_labels
        width = body.fc.in_features
        self.count = [0] * CLASSES
        self.mean = torch.zeros(CLASSES, width)
        self.covariance = torch.zeros(CLASSES, width, width)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body.forward_features(images).mean((2, 3))
        return features, features @ self.body.fc.weight.T + self.body.fc.bias

    def estimate(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        for c in labels.unique().tolist():
            rows = features[labels == c].detach()
            mean, share = rows.mean(0), len(rows) / (len(rows) + self.count[c])
            covariance = sum(torch.outer(row - mean, row - mean) for row in rows) / len(rows)
            between = torch.outer(self.mean[c] - mean, self.mean[c] - mean)
            covariance = (1 - share) * self.covariance[c] + share * covariance + share * (1 - share) * between
            self.covariance[c] = torch.diag(covariance.diag()) if self.diagonal else covariance
            self.mean[c] = (1 - share) * self.mean[c] + share * mean
            self.count[c] += len(rows)

    def augmented(self, logits: torch.Tensor, labels: torch.Tensor, strength: float) -> torch.Tensor:
        rows = []
        for row, y in zip(logits, labels.tolist(), strict=True):
            apart = self.body.fc.weight - self.body.fc.weight[y]
            rows.append(row + strength / 2 * torch.stack([w @ self.covariance[y] @ w for w in apart]))
        return torch.stack(rows)

    def train(self, steps: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        weights, moving = list(self.body.parameters()), {}
        self.body.train()
        for number, (images, labels) in enumerate(steps):
            epoch = number // (len(steps) // EPOCHS)
            features, logits = self.outputs(images)
            self.estimate(features, labels)
            scores = self.augmented(logits, labels, LAMBDA_0 * epoch / EPOCHS)
            loss = torch.stack([row.logsumexp(0) - row[y] for row, y in zip(scores, labels, strict=True)]).mean()
            rate = RATE if epoch < MILESTONE else RATE / 10
            for at, (weight, gradient) in enumerate(zip(weights, torch.autograd.grad(loss, weights), strict=True)):
                moving[at] = MOMENTUM * moving.get(at, 0) + gradient + DECAY * weight.detach()
                weight.data -= rate * moving[at]
        self.body.eval()

    @torch.no_grad()
    def select(self, images: torch.Tensor, budget: int) -> list[int]:
        """Return the positions of the images with the highest scores."""
        scores = []
        for part in images.split(SCORED_AT_ONCE):
            features, logits = self.outputs(part)
            predicted = logits.argmax(1)
            if self.pseudo_labels:
                self.estimate(features, predicted)
            for row, y in zip(self.augmented(logits, predicted, 1), predicted, strict=True):
                scores.append(float(row.logsumexp(0) - row[y]))  # Eq. 7 is exp of it, less 1
        return sorted(range(len(scores)), key=lambda at: -scores[at])[:budget]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in float64 what would run in float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("covariance", "pseudo_labels"), [("diagonal", False), ("diagonal", True), ("full", False)], ids=str
)
def test_a_whole_trial_is_that_of_the_authors(
    covariance: str, pseudo_labels: bool, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three warm cycles with the same first weights and augmented batches: weights and statistics agree to 1e-10."""
    halves = (
        spec("isda", Training, covariance=covariance, lambda_0=LAMBDA_0),
        spec("epmcm", Acquisition, pseudo_labels=pseudo_labels),
    )
    recipe = {"epochs": EPOCHS, "milestones": [MILESTONE], "batch_size": BATCH, "learning_rate": RATE}
    trial = make_trial(*halves, **recipe, momentum=MOMENTUM, weight_decay=DECAY, inference_batch_size=SCORED_AT_ONCE)
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = boundary.batch

    def batch(*arguments: Any) -> Any:
        images, labels = real(*arguments)
        steps.append((images.clone(), labels.clone()))
        return images, labels

    monkeypatch.setattr(boundary, "batch", batch)
    learner = ActiveLearner(trial, digits)
    theirs = Authors(copy.deepcopy(learner.network.body), covariance == "diagonal", pseudo_labels)

    def shown(images: Any) -> torch.Tensor:
        scaled = torch.from_numpy(images).double() / 255
        return ((scaled - torch.tensor(digits.mean)) / torch.tensor(digits.std)).permute(0, 3, 1, 2)

    for number in range(3):
        steps.clear()
        cycle = learner.open_cycle(number)
        accuracy = learner.train(cycle).metrics["accuracy"]
        picked = learner.select(cycle).indices
        assert len(steps) == EPOCHS * -(-len(cycle.labelled) // BATCH) and steps[0][0].dtype == torch.float64
        theirs.train(steps)
        with torch.no_grad():
            predicted = theirs.outputs(shown(digits.test_images))[1].argmax(1)
        assert accuracy == float((predicted == torch.from_numpy(digits.test_labels)).double().mean())
        drawn = cycle.candidates.tolist()
        rows = theirs.select(shown(digits.train_images[drawn]), trial.protocol.budget)
        assert picked == [drawn[row] for row in rows]
        for name, expected in theirs.body.state_dict().items():
            found = learner.network.body.state_dict()[name]
            assert torch.allclose(found, expected, rtol=0, atol=1e-10), name
        statistics = learner.training.state()
        found = statistics["covariance"]
        found = torch.diag_embed(found) if covariance == "diagonal" else found
        assert torch.allclose(found, theirs.covariance, rtol=0, atol=1e-10)
        assert statistics["count"].tolist() == theirs.count
        learner.label(picked)
