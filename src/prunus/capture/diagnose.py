"""Say where in the user's model something went wrong."""

import os
import sysconfig
import traceback

import torch

__all__ = ["first_line", "place_in_model"]

_FOREIGN = (
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)
_LONGEST = 400
_STDLIB = sysconfig.get_path("stdlib") + os.sep


def place_in_model(error: BaseException) -> str | None:
    """File, line and code of the innermost frame that belongs to the model: not to torch, prunus or Python.

    Looks at the error itself first, then at what it was raised from.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        for frame in reversed(traceback.extract_tb(current.__traceback__)):
            if _belongs_to_model(frame.filename):
                code = f": {frame.line}" if frame.line else ""
                return f"{frame.filename}:{frame.lineno} in {frame.name}{code}"
        current = current.__cause__ or current.__context__
    return None


def first_line(error: BaseException) -> str:
    """Type and first line of an error's text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'}"


def _belongs_to_model(filename: str) -> bool:
    path = os.path.abspath(filename)
    if filename.startswith("<") or path.startswith(_FOREIGN):
        return False
    return not path.startswith(_STDLIB) or "site-packages" in path
