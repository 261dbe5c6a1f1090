"""What is said of outputs: free ones may get narrower, dropped ones hold nothing, all others keep their shape."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import prunus


class Maps(nn.Module):
    """A backbone that returns its maps in a list, beside an auxiliary output with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(inplace=True), nn.Conv2d(12, 5, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        a = self.a(x).relu_()
        b = self.b(a).relu()
        return {"out": self.head(b.mean((2, 3))), "maps": [a, b], "aux": self.aux(a)}


class Both(NamedTuple):
    tokens: torch.Tensor
    pooled: torch.Tensor


class Encoder(nn.Module):
    """Tokens and what they are pooled to, in a named tuple; both come from one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.pool = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Both:
        tokens = self.out(torch.tanh(self.inner(x)))
        return Both(tokens, self.pool(tokens.mean(1)))


HALF = prunus.Target(channels=0.5)


def test_every_output_keeps_its_shape_by_default():
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    small = prunus.compress(net, x, target=HALF).model(x)
    assert [m.shape[1] for m in small["maps"]] == [8, 16] and small["aux"].shape[1] == 5


def test_a_free_output_gets_narrower_and_the_rest_stays():
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    result = prunus.compress(net, x, target=HALF, outputs={"maps": "free"})
    small = result.model(x)
    assert [m.shape[1] for m in small["maps"]] == [4, 8]
    assert small["out"].shape == (2, 4) and small["aux"].shape[1] == 5
    assert type(result.model) is Maps
    assert any("maps.0 from (2, 8, 8, 8) to (2, 4, 8, 8)" in note for note in result.report.notes)


def test_free_maps_are_the_kept_channels_of_the_original():
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    plan = prunus.plan(
        prunus.analyze(net, x, outputs={"maps.0": "free"}), method=prunus.ByIndex(keep={"a": [1, 4, 6]})
    )
    torch.testing.assert_close(
        prunus.apply(net, plan, example_inputs=x).model(x)["maps"][0], net(x)["maps"][0][:, [1, 4, 6]]
    )


def test_a_dropped_output_takes_its_layers_along():
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    result = prunus.compress(net, x, target=HALF, outputs={"maps": "free", "aux": "drop"})
    small = result.model(x)
    assert small["aux"] is None and small["out"].shape == (2, 4)
    assert not any(name.startswith("aux") for name, _ in result.model.named_parameters())


def test_writing_into_what_a_kept_output_reads_is_no_part_of_a_dropped_one():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> Any:
            h = self.a(x)
            side = h.view(-1, 8)[:, :4].mul_(3.0)  # the kept output sees this
            return self.b(h), side.sum(1)

    net, x = Writes().eval(), torch.randn(3, 4)
    result = prunus.compress(net, x, target=prunus.Target(channels=1.0), outputs={1: "drop"})
    torch.testing.assert_close(result.model(x)[0], net(x)[0])


def test_fields_of_a_named_tuple_are_outputs():
    net, x = Encoder().eval(), torch.randn(2, 5, 6)
    assert prunus.compress(net, x, target=HALF).model(x).tokens.shape[-1] == 8
    small = prunus.compress(net, x, target=HALF, outputs={"tokens": "free"}).model(x)
    assert small.tokens.shape[-1] == 4 and small.pooled.shape[-1] == 3


def test_a_lone_tensor_is_called_by_a_star():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)).eval(), torch.randn(2, 4)
    for outputs in ("free", {"*": "free"}):
        assert prunus.compress(net, x, target=HALF, outputs=outputs).model(x).shape == (2, 3)


def test_a_plan_remembers_what_was_said():
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    plan = prunus.compress(net, x, target=HALF, outputs={"maps.1": "free", "aux": "drop"}).plan
    again = prunus.Plan.from_json(plan.to_json())
    assert again == plan and again.outputs == {"maps.1": "free", "aux": "drop"}
    assert prunus.apply(Maps().eval(), again).model(x)["maps"][1].shape[1] == 8


def test_a_result_with_dropped_outputs_can_be_saved(tmp_path):
    net, x = Maps().eval(), torch.randn(2, 3, 8, 8)
    result = prunus.compress(net, x, target=HALF, outputs={"maps": "free", "aux": "drop"})
    loaded = prunus.load(result.save(tmp_path / "small"))
    torch.testing.assert_close(loaded(x)["maps"][0], result.model(x)["maps"][0])


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"map": "free"}, "did you mean 'maps"),
        ({"out": "fre"}, "say one of 'keep', 'free', 'drop'"),
        ({"*": "drop"}, "at least one has to stay"),
        (3, "outputs is a int"),
        ({2.5: "free"}, "key 2.5"),
        ("narrow", "say one of"),
    ],
)
def test_what_makes_no_sense_is_named(outputs, said):
    with pytest.raises(prunus.ConfigError, match=said):
        prunus.analyze(Maps().eval(), torch.randn(2, 3, 8, 8), outputs=outputs)
