"""What a run does: its units of work, their execution, the plan and the progress display."""
