"""prunus: structured pruning and filter decomposition of PyTorch networks."""

__version__ = "0.1.0"
