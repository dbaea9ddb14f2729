"""CIFAR-100: 50000 training and 10000 test images in 100 (fine) classes, 32 x 32 RGB."""

from __future__ import annotations

from harness.data.dataset import DatasetSettings

from ._cifar import CIFAR100, Cifar


class Cifar100(Cifar):
    """CIFAR-100 from the official archive, or from an image tree with its classes and any number of images."""

    class Settings(DatasetSettings):
        """cifar100 has only the common settings."""

    kind = CIFAR100
