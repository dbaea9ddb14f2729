"""The grid of a run: its units of work, plan and display."""
