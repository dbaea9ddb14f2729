"""Trainings and acquisitions. The name of a file is the name of its training or acquisition in a config."""
