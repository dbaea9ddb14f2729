"""Plain supervised training: cross-entropy by the suite's recipe."""

from __future__ import annotations

from harness.learning.contract import Training


class Plain(Training):
    """Cross-entropy and nothing else: the training of random, uncertainty sampling and Core-set."""
