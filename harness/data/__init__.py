"""Datasets, and batches of their images on a device."""
