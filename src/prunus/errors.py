"""Everything that prunus raises on purpose.

    PrunusError
    ├── ConfigError         an argument or option makes no sense, found before any work starts
    ├── SourceError         a file or object that is not a model that prunus can read
    ├── CaptureError        the model's forward could not be turned into a graph
    ├── StructureError      the graph contradicts itself about which channels belong together
    ├── TargetError         the target cannot be reached: says what can, and what stands in the way
    ├── PlanError           a plan does not fit the model, or contradicts itself
    ├── SurgeryError        the network could not be cut as the plan says
    ├── VerificationError   the cut network does not compute what it should
    ├── ArtefactError       a saved result cannot be written or read
    └── InputError          a graph is called with inputs for which it does not hold

Every message says what happened, where (module path, node, source line, shapes), and what to do about it.
"""

__all__ = [
    "ArtefactError",
    "CaptureError",
    "ConfigError",
    "InputError",
    "PlanError",
    "PrunusError",
    "SourceError",
    "StructureError",
    "SurgeryError",
    "TargetError",
    "VerificationError",
]


def printable(text: str) -> str:
    """A text without what would move a terminal's cursor or change its colors: names of layers and files can hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class PrunusError(Exception):
    """Base of all errors that prunus raises on purpose; catching it catches them all."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(PrunusError):
    """An argument or option that makes no sense; the message lists every problem found."""


class SourceError(PrunusError):
    """A file or object that is not a model that prunus can read."""


class CaptureError(PrunusError):
    """The model's forward could not be turned into a graph."""


class StructureError(PrunusError):
    """The graph contradicts itself about which channels belong together."""


class TargetError(PrunusError):
    """The target cannot be reached; the message says what can be, and what stands in the way."""


class PlanError(PrunusError):
    """A plan does not fit the model, or contradicts itself."""


class SurgeryError(PrunusError):
    """The network could not be cut as the plan says."""


class VerificationError(PrunusError):
    """The cut network does not compute what it should; nothing is handed back."""


class ArtefactError(PrunusError):
    """A saved result that cannot be written or read."""


class InputError(PrunusError):
    """A graph was called with inputs of a size or kind for which it does not hold."""
