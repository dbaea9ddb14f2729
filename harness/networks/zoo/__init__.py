"""The networks: one plug-in per file, and shared code in files with a leading underscore."""
