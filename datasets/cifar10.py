"""CIFAR-10: 50000 training and 10000 test images in 10 classes, 32 x 32 RGB."""

from __future__ import annotations

from harness.data.dataset import DatasetSettings

from ._cifar import CIFAR10, Cifar


class Cifar10(Cifar):
    """CIFAR-10 from the official archive, or from an image tree with its classes and any number of images."""

    class Settings(DatasetSettings):
        """cifar10 has only the common settings."""

    kind = CIFAR10
