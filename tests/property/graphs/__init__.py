"""Random directed graphs of operators: values with several uses, several inputs and several outputs.

A network is a seed; what it is, is Python text that anybody can run.
"""

from tests.property.graphs.draw import graph
from tests.property.graphs.sketch import Network

__all__ = ["Network", "graph"]
