"""CIFAR-10: 50000 training and 10000 test images in 10 classes, 32 x 32 RGB."""

from __future__ import annotations

from harness.data.dataset import DatasetSettings

from ._cifar import CIFAR10, Cifar


class Cifar10(Cifar):
    """The official archive, or a tree of images in its classes (any number of images in each)."""

    class Settings(DatasetSettings):
        """Settings of cifar10: the common ones."""

    kind = CIFAR10
