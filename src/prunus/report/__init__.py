"""Report: what was done to a network, and what it gained."""
