"""The property must be able to fail: with a wrong rule for one operator, no wrong network gets through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import PrunusError
from prunus.structure.rules.registry import RULES, overloads
from prunus.structure.value import Value
from tests.property.chain import prune
from tests.property.choices import Seeded
from tests.property.form import Do, randomize
from tests.property.networks import Network, build

Broken = Callable[[Any, torch.fx.Node, Any], Any]


def reversed_parts(rule: Broken) -> Broken:
    """Operands of a concatenation in the wrong order."""

    def broken(run: Any, node: torch.fx.Node, a: Any) -> Any:
        a.tensors = list(reversed(a.tensors))
        return rule(run, node, a)

    return broken


def unrelated(rule: Broken) -> Broken:
    """The first operand passes; nothing is said of the second."""
    return lambda run, node, a: Value(run.shape(node), a.self.tracks)


def unmoved(rule: Broken) -> Broken:
    """A movement that is taken for none."""
    return lambda run, node, a: a.self


def swapped(rule: Broken) -> Broken:
    """The parts of a split in the wrong order."""
    return lambda run, node, a: tuple(reversed(rule(run, node, a)))


def free(rule: Broken) -> Broken:
    """A layer whose weight has nothing to do with its input."""

    def broken(run: Any, node: torch.fx.Node, a: Any) -> Any:
        a.input = Value(a.input.shape, ())
        a.weight = Value(a.weight.shape, a.weight.tracks[:1])
        return rule(run, node, a)

    return broken


def conv(out: int, channels: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1)


def joined(self: Do, x: Tensor) -> Tensor:
    return self.last(torch.cat([self.one(x), self.two(x)], 1))


def added(self: Do, x: Tensor) -> Tensor:
    return self.last(self.one(x) + self.two(x))


def flipped(self: Do, x: Tensor) -> Tensor:
    return self.last(self.one(x).flip(1) * self.two(x))


def gated(self: Do, x: Tensor) -> Tensor:
    value, gate = self.one(x).chunk(2, 1)
    return self.last(torch.cat([value.relu(), gate.sigmoid()], 1))


def plain(self: Do, x: Tensor) -> Tensor:
    return self.last(self.one(x).relu())


CASES = [
    ("cat", reversed_parts, joined, (6, 4, 10)),
    ("add", unrelated, added, (8, 8, 8)),
    ("flip", unmoved, flipped, (8, 8, 8)),
    ("chunk", swapped, gated, (8, 8, 8)),
    ("conv2d", free, plain, (8, 8, 8)),
]


def network(function: Any, sizes: tuple[int, int, int]) -> Network:
    torch.manual_seed(0)
    one, two, read = sizes
    model = Do("net", function, one=conv(one), two=conv(two), last=conv(5, read))
    return Network(randomize(model, 1).eval(), (torch.randn(2, 3, 2, 2),))


def passes(make: Callable[[], Network], seeds: range) -> list[bool]:
    """Whether each random plan gives a network that computes what it should."""
    found = []
    for seed in seeds:
        try:
            found.append(prune(make(), Seeded(seed)).verification.max_relative_error <= 1e-9)
        except PrunusError:
            found.append(False)
    return found


@pytest.mark.parametrize(("name", "breaking", "function", "sizes"), CASES, ids=[case[0] for case in CASES])
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, breaking: Any, function: Any, sizes: tuple[int, int, int]
) -> None:
    seeds = range(6)
    assert all(passes(lambda: network(function, sizes), seeds))
    for op in overloads(name):
        rule = RULES.get(op) or (lambda run, node, a: run.pointwise(node, [a.self, a.other]))
        monkeypatch.setitem(RULES, op, breaking(rule))
    assert not all(passes(lambda: network(function, sizes), seeds))


def test_a_broken_rule_is_found_among_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in overloads("cat"):
        monkeypatch.setitem(RULES, op, reversed_parts(RULES[op]))

    def unnoticed(seed: int) -> bool:
        return passes(lambda: build(Seeded(seed)), range(seed, seed + 1))[0]

    assert not all(unnoticed(seed) for seed in range(40))  # stops at the first that is found
