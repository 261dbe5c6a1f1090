"""Constants: which channels have one value whatever the inputs, told from the graph and its parameters alone."""

from prunus.constants.bounds import Bounds
from prunus.constants.interpret import bounds_of
from prunus.constants.taking import Reader, reader_of

__all__ = ["Bounds", "Reader", "bounds_of", "reader_of"]
