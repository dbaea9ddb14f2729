"""Selects the images whose highest logit is lowest. Source: none (an example)."""

from harness import Acquisition, Batch, per_position


class LowestLogit(Acquisition):
    """Ranks by the highest logit, lowest first."""

    def describe(self, network, batch: Batch, prepared):
        """Return the column ``score``: minus the highest logit of each image or position."""
        return {"score": -per_position(lambda logits: logits.max(1).values, network(batch.images).logits)}
