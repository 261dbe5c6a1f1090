"""Example inputs: the one form in which the rest of prunus sees what the user passed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from prunus.errors import ConfigError

__all__ = ["Inputs", "as_examples", "as_inputs"]


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a model: ``model(*inputs.args, **inputs.kwargs)``.

    Args:
        args: Positional arguments; each may be any pytree of tensors and constants.
        kwargs: Keyword arguments, likewise.

    Raises:
        ConfigError: `args` is no tuple, or `kwargs` no dictionary.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.args, tuple | list) or not isinstance(self.kwargs, Mapping):
            raise ConfigError(
                f"Inputs takes a tuple of positional arguments and a dictionary of keywords, as in Inputs((x,), {{'mask': mask}}); "
                f"got a {type(self.args).__name__} and a {type(self.kwargs).__name__}"
            )


def as_inputs(example_inputs: Any) -> Inputs:
    """Bring what a user passes as example inputs into the form `Inputs`.

    Args:
        example_inputs: A tensor (the only argument), a tuple or list (the positional arguments), a mapping
            with string keys (the keyword arguments; the result of a tokenizer is one), or an `Inputs`.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, torch.Tensor):
        return Inputs((example_inputs,), {})
    if isinstance(example_inputs, tuple | list):
        return Inputs(tuple(example_inputs), {})
    if isinstance(example_inputs, Mapping):
        strange = [key for key in example_inputs if not isinstance(key, str)]
        if strange:
            raise ConfigError(
                f"example_inputs is a mapping with keys that are not strings ({strange[0]!r}), so they "
                "cannot be names of arguments. To pass a dictionary as the only argument, write "
                "({...},)."
            )
        return Inputs((), dict(example_inputs))
    raise ConfigError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tensor, a tuple or list of "
        "positional arguments, a dictionary of keyword arguments, or prunus.Inputs(args, kwargs)."
    )


def as_examples(example_inputs: Any) -> tuple[Inputs, ...]:
    """Bring what a user passes as one or several example inputs into a tuple of `Inputs`.

    Args:
        example_inputs: A list for several examples, each of a form that `as_inputs` takes; anything else is one example. So
            several arguments of one call are a tuple, and an argument that is a list is ``([...],)``.

    Raises:
        ConfigError: For an empty list, or an example of no known form.
    """
    if not isinstance(example_inputs, list):
        return (as_inputs(example_inputs),)
    if not example_inputs:
        raise ConfigError(
            "example_inputs is an empty list; a list holds one or several examples. For a forward without arguments, pass ()."
        )
    return tuple(as_inputs(example) for example in example_inputs)
