"""Training, inference and scoring of one trial: what a method is, and what it is handed."""
