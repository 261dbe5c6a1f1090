"""Capture: a model and example inputs become one graph with every parameter as a value in it."""

from prunus.capture.captured import Captured
from prunus.capture.dynamic import Dynamic, checked_dynamic
from prunus.capture.examples import unreached
from prunus.capture.hashing import architecture_hash
from prunus.capture.kinds import require_values
from prunus.capture.parts import Partial
from prunus.capture.scripted import scripted_paths
from prunus.capture.sizes import concrete, is_symbolic, size_of
from prunus.capture.source import capture
from prunus.capture.wanted import checked_outputs, output_paths, with_outputs

__all__ = [
    "Captured",
    "Dynamic",
    "Partial",
    "architecture_hash",
    "capture",
    "checked_dynamic",
    "checked_outputs",
    "concrete",
    "is_symbolic",
    "output_paths",
    "require_values",
    "scripted_paths",
    "size_of",
    "unreached",
    "with_outputs",
]
