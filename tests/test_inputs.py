"""What may be passed as example inputs."""

from collections import UserDict

import pytest
import torch

from prunus.errors import ConfigError, PrunusError
from prunus.inputs import Inputs, as_inputs

X = torch.zeros(2, 3)
Y = torch.ones(2)


def test_a_tensor_is_the_only_argument() -> None:
    inputs = as_inputs(X)
    assert inputs.args == (X,) and inputs.args[0] is X
    assert inputs.kwargs == {}


@pytest.mark.parametrize("sequence", [(X, Y), [X, Y]])
def test_a_sequence_is_the_positional_arguments(sequence: object) -> None:
    inputs = as_inputs(sequence)
    assert isinstance(inputs.args, tuple)
    assert inputs.args[0] is X and inputs.args[1] is Y
    assert inputs.kwargs == {}


@pytest.mark.parametrize("mapping", [{"x": X, "y": None}, UserDict({"x": X, "y": None})])
def test_a_mapping_is_the_keyword_arguments(mapping: object) -> None:
    inputs = as_inputs(mapping)
    assert inputs.args == ()
    assert type(inputs.kwargs) is dict
    assert inputs.kwargs["x"] is X and inputs.kwargs["y"] is None


def test_the_users_dictionary_is_not_shared() -> None:
    given = {"x": X}
    as_inputs(given).kwargs["more"] = Y
    assert list(given) == ["x"]


def test_inputs_pass_as_they_are() -> None:
    inputs = Inputs((X,), {"y": Y})
    assert as_inputs(inputs) is inputs


@pytest.mark.parametrize("wrong", [3, "image.png", None, X.numpy(), {1: X}, {X}])
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        as_inputs(wrong)
    assert isinstance(caught.value, PrunusError)
    text = str(caught.value)
    assert "strings" in text if isinstance(wrong, dict) else type(wrong).__name__ in text
