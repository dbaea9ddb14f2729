"""Supervised training with cross-entropy, by the suite's recipe."""

from __future__ import annotations

from harness.learning.contract import Training


class CrossEntropy(Training):
    """The training of random selection, uncertainty sampling, Core-set and QBC."""

    formerly = "plain"
