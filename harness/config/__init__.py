"""YAML -> checked suites and trials."""
