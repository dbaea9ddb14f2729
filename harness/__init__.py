"""Benchmark harness for deep active learning: config -> trials -> cycles -> records -> report."""

from pathlib import Path

__version__ = "0.1.0"

# The plug-in folders stay beside this package, where a reader looks for them, and are imported as harness.methods and
# harness.datasets: a foreign package called datasets (Hugging Face's) can be installed, and imported first.
__path__.append(str(Path(__file__).resolve().parent.parent))
