"""Trainings and acquisitions, one file each; the file name is the name in a config."""
