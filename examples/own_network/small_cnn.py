"""Four convolutions for small images."""

from itertools import pairwise

from torch import nn

from harness import Architecture, Network, Stages


class SmallCNN(Architecture):
    """Halves height and width after each stage but the last."""

    def build(self, info):
        """Return a new network for the dataset."""
        widths = [info.channels, 16, 32, 64, 128]
        stages = [
            nn.Sequential(nn.Conv2d(a, b, 3, 1 if b == 16 else 2, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        return Network(Stages(stages, nn.Linear(128, info.num_classes)))
