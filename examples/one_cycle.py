"""One cycle of active learning by hand: what a notebook does to look inside a method.

    python examples/one_cycle.py

Trains DAST-AL of configs/quickstart.yaml for one cycle, shows what it selects, and opens the next cycle.
"""

from __future__ import annotations

from pathlib import Path

import harness

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"


def main() -> None:
    """Run the cycle and print what happens."""
    benchmark = harness.load_config(CONFIG, ["recipe.epochs=10", "recipe.milestones=[]"])
    (suite,) = benchmark.suites
    trial = next(trial for method, trial in suite.trials() if method == "DAST-AL" and trial.seed == 0)
    learner = harness.ActiveLearner(trial, suite.open_dataset(benchmark.where).load())

    cycle = learner.open_cycle(0)
    trained = learner.train(cycle)
    print(f"{len(cycle.labelled)} labelled images: accuracy {trained.metrics['accuracy']:.1%}")

    selection = learner.select(cycle)
    assert selection.scored is not None
    scores = selection.scored.columns["score"]
    print(f"{len(scores)} candidates have scores from {scores.min():.2f} to {scores.max():.2f}")
    print(f"best first: {selection.indices[:5]} ...")

    learner.label(selection.indices)
    print(f"the next cycle trains on {len(learner.open_cycle(1).labelled)} images")


if __name__ == "__main__":
    main()
