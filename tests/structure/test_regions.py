"""Regions of a forward: autocast, conditions, modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as control_flow_map

import prunus
from prunus.capture import capture
from prunus.surgery import lift
from tests.property.networks import Network
from tests.structure.families import free, network, pruned

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def same_numbers(made: Network, *inputs: Any) -> None:
    """What the captured graph computes is bit for bit what the model computes."""
    graph = lift(capture(made.model, made.inputs))
    with torch.no_grad():
        for given in (made.inputs, *inputs):
            assert torch.equal(graph(*given), made.model(*given))


def convolutions(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m.a(x.float()).relu()
    with torch.autocast(**BF16):
        y = m.n(m.b(y)).relu()
        with torch.no_grad():
            z = (y + y.float()).mean((2, 3))
    return m.f(z.float())


def attention(m: Any, x: Tensor) -> Tensor:
    with torch.autocast(**BF16):
        heads = [layer(x).view(2, 5, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v)]
        y = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        with torch.autocast("cpu", enabled=False):
            y = y.float() * 0.5
        return m.n(x + m.o(y)).float()


def products(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        y = torch.einsum("nc,ch->nh", torch.tanh(m.a(x)), m.w)
        y = torch.cat([y, y.float()], 1)
        return m.f(y).softmax(-1).float()


AUTOCAST: dict[str, Callable[[], Network]] = {
    "convolutions": lambda: network(
        convolutions, torch.randn(2, 3, 7, 7),
        a=nn.Conv2d(3, 8, 3), n=nn.BatchNorm2d(12), b=nn.Conv2d(8, 12, 3), f=nn.Linear(12, 4),
    ),
    "attention": lambda: network(
        attention, torch.randn(2, 5, 8),
        q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(8, 8), n=nn.LayerNorm(8),
    ),
    "products": lambda: network(
        products, torch.randn(2, 6), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(8, 10)), f=nn.Linear(20, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_is_followed_with_its_casts(name: str) -> None:
    made = AUTOCAST[name]()
    same_numbers(made)
    structure = pruned(made, range(2))
    assert not structure.unknown
    assert sum(free(structure).values()) >= 8


def test_what_a_forward_casts_is_cast_in_the_result() -> None:
    made = AUTOCAST["convolutions"]()
    result = prunus.compress(made.model, made.inputs, target=prunus.Target(channels=0.5))
    assert result.report.form == "class"
    small = lift(capture(result.model, made.inputs))
    with torch.no_grad():
        assert torch.equal(small(*made.inputs), result.model(*made.inputs))
        assert "bfloat16" in str(small.code)


def by_value(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    y = torch.cond(x.sum() > 0, lambda t: m.b(t).relu(), lambda t: m.b(t * 2).sigmoid(), (y,))
    return m.f(y)


def by_size(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    y, z = torch.cond(x.shape[0] > 3, lambda t: (m.b(t), t + 1), lambda t: (m.c(t), t * 2), (y,))
    return m.f(y * 0.5) + z.mean(1, keepdim=True)


def nested(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).view(-1, 2, 4).relu()

    def positive(t: Tensor) -> Tensor:
        return torch.cond(x[0, 0] > 0, lambda t: m.b(t), lambda t: m.c(t), (t,))

    return m.f(torch.cond(x.sum() > 0, positive, lambda t: t.flip(1).relu(), (y.flatten(1),)))


CONDITIONS: dict[str, Callable[[], Network]] = {
    "by_value": lambda: network(by_value, torch.randn(2, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 10), f=nn.Linear(10, 3)),
    "by_size": lambda: network(
        by_size, torch.randn(2, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 10), c=nn.Linear(8, 10), f=nn.Linear(10, 3)
    ),
    "nested": lambda: network(
        nested, torch.randn(2, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), f=nn.Linear(8, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_both_branches_of_a_condition_are_followed(name: str) -> None:
    made = CONDITIONS[name]()
    mirrored = made.inputs[0].flip(0, 1)
    others = [(sign * x,) for sign in (1, -1) for x in (made.inputs[0], mirrored, mirrored.repeat(2, 1))]
    same_numbers(made, *others)
    structure = pruned(made, range(2))
    assert not structure.unknown
    assert sum(free(structure).values()) >= 8


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_class_with_conditions_comes_back(name: str) -> None:
    made = CONDITIONS[name]()
    cond = torch.cond
    result = prunus.compress(made.model, made.inputs, target=prunus.Target(channels=0.5))
    assert torch.cond is cond
    assert result.report.form == "class" or name == "nested"  # which reads a number of its forward's own
    graph = lift(result.captured)
    x = made.inputs[0]
    for given in (x, -x, x.flip(0, 1), torch.cat([x, -x])):
        with torch.no_grad():
            torch.testing.assert_close(result.model(given), graph(given))


class Loops(nn.Module):
    """Loops in the graph, and a submodule that is called like torch.export calls their bodies."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.mix, self.step, self.head = (
            nn.Linear(*sizes) for sizes in ((3, 8), (8, 6), (6, 6), (6, 2))
        )
        self.body_graph_0 = self.scan_combine_graph_0 = self.while_loop_body_graph_0 = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:  # (T, N, 3)
        y = self.body_graph_0(self.mix(self.embed(x).relu()))
        if self.kind == "map":
            y = control_flow_map(lambda t: self.step(t).relu(), y)  # type: ignore[arg-type]
        elif self.kind == "scan":
            _, y = scan(self.combine, torch.zeros_like(y[0]), y, dim=0)
        else:
            _, y = while_loop(
                lambda i, t: i < 3,
                lambda i, t: (i + 1, self.step(t).tanh()),
                (torch.zeros((), dtype=torch.int64), y),
            )
        return self.head(y)

    def combine(self, carried: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.step(carried) + x)
        return new, new * 2


@pytest.mark.parametrize("kind", ["map", "scan", "while"])
def test_loops_are_held_by_name_and_all_else_shrinks(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Loops(kind).eval(), torch.randn(4, 2, 3)
    result = prunus.compress(model, x, target=prunus.Target(params=0.85))
    assert any(kind in operator for operator in result.report.unknown_operators.values())
    (plan,) = [group for group in result.plan.groups if group.name == "embed"]
    with torch.no_grad():
        gone = torch.ones(8, dtype=torch.bool)
        gone[list(plan.keep)] = False
        model.mix.weight[:, gone] = 0
        torch.testing.assert_close(result.model(x), model(x))


class Modes(nn.Module):
    """Opens a mode that has no effect on the numbers around a layer, as a block or as a decorator."""

    def __init__(self, mode: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.mode(self.b)(self.a(x).relu()))


def inference(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return run


def checkpointed(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)  # type: ignore[return-value]


@pytest.mark.parametrize("mode", [inference, torch.inference_mode(), torch.no_grad(), checkpointed])
def test_modes_hold_nothing(mode: Any) -> None:
    model, x = Modes(mode).eval(), torch.randn(3, 5)
    entered = torch.inference_mode.__enter__
    groups = prunus.analyze(model, x).prunable
    assert sorted(group.size for group in groups) == [6, 8]
    assert torch.inference_mode.__enter__ is entered
