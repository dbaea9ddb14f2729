"""The report of a run: tables, learning curves and pictures, made from its records."""
