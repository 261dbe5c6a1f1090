"""Every call of the table in `bad_calls.py` gives its error: early, with a message, and with nothing changed."""

from collections.abc import Iterator

import pytest
from torch import nn

from tests.bad_calls import CALLS, Call, Surroundings, outcome, problem


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    yield Surroundings(tmp_path_factory.mktemp("bad") / "folder")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.text[:80])
def test_a_call_that_makes_no_sense(call: Call, around: Surroundings) -> None:
    assert problem(call, outcome(call, around)) == ""


def test_the_table_is_long_and_says_nothing_twice() -> None:
    assert len({call.text for call in CALLS}) == len(CALLS) >= 100
    assert sum(call.text.startswith("$ ") for call in CALLS) >= 20


def test_a_call_that_makes_sense_is_a_problem(around: Surroundings) -> None:
    call = Call("prunus.compress(net, x, target=HALF)", "ConfigError")
    assert problem(call, outcome(call, around)).startswith("accepted instead of ConfigError")


def test_a_change_is_a_problem(around: Surroundings) -> None:
    around.names["spoil"] = lambda: (around.model[0].bias.data.add_(1), nn.Linear(1, 1)(around.names["x"]))
    around.names["fails"] = lambda: (around.model.eval(), around.names["structure"].group("conv9"))
    bare, changing = Call("spoil()", "PlanError"), Call("fails()", "PlanError", early=False)
    assert "bare RuntimeError" in problem(bare, outcome(bare, around))
    assert "was changed" in problem(changing, outcome(changing, around))
    around.model.train()[1].eval()
