"""Target networks behind one interface."""
