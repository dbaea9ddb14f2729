"""Loads and checks configs: from YAML to suites of trials."""
