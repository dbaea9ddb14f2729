"""Training, inference and scoring of one trial, and the contract of methods."""
