"""Capture: a model and example inputs become one graph with every parameter as a value in it."""

from prunus.capture.captured import Captured
from prunus.capture.examples import unreached
from prunus.capture.hashing import architecture_hash
from prunus.capture.parts import Partial
from prunus.capture.scripted import scripted_paths
from prunus.capture.sizes import concrete, size_of
from prunus.capture.source import capture
from prunus.capture.wanted import output_paths, output_problems, with_outputs

__all__ = [
    "Captured",
    "Partial",
    "architecture_hash",
    "capture",
    "concrete",
    "output_paths",
    "output_problems",
    "scripted_paths",
    "size_of",
    "unreached",
    "with_outputs",
]
