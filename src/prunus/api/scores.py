"""What a function of the user's own says of the model, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunus.capture import Captured
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.errors import ConfigError
from prunus.surgery import lift

__all__ = ["Scores"]


class Scores:
    """Values of a function after each step.

    Args:
        evaluate: gets a model in evaluation mode, without gradients, and returns a number.

    Attributes:
        values: step -> value.

    Raises:
        ConfigError: `evaluate` cannot be called.
    """

    def __init__(self, evaluate: Callable[[nn.Module], float]) -> None:
        if not callable(evaluate):
            raise ConfigError(
                f"evaluate is a {type(evaluate).__name__}: pass a function from a model to a number"
            )
        self._evaluate = evaluate
        self.values: dict[str, float] = {}

    def original(self, captured: Captured) -> None:
        """Note the value of the model that was captured, once; it is left as it was."""
        if "original" not in self.values:
            self.note("original", captured.owner if captured.owner is not None else lift(captured))

    def note(self, step: str, model: nn.Module) -> None:
        """Note the value after a step.

        Raises:
            ConfigError: it is no finite number.
        """
        with left_as_found(model), buffers_kept(model), torch.no_grad():
            got: Any = self._evaluate(model)
        try:
            value = float(got)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"evaluate returned a {type(got).__name__} for the model ({step}): it has to return one number"
            ) from error
        if not math.isfinite(value):
            raise ConfigError(
                f"evaluate returned {value} for the model ({step}): it has to return a finite number"
            )
        self.values[step] = value
