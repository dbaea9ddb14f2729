"""Datasets. The name of a file is the name of its dataset in a config."""
