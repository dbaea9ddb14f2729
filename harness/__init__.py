"""Benchmark harness for deep active learning: config -> trials -> cycles -> records -> report."""

__version__ = "0.1.0"
