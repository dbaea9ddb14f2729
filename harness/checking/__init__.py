"""The conformance suite of plug-ins: what only a second run shows, and the lists of plug-ins and settings."""
