"""Experts in a stack, to which a router sends tokens: what they have in common can shrink, who is chosen stays."""

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import CostModel
from prunus.structure.rules import RULES, rule
from prunus.surgery import count_macs
from tests.property.form import Do, randomize
from tests.property.networks import Network
from tests.structure.families import free, held, pruned, structure_of

EXPERTS, WIDTH, HIDDEN = 3, 8, 16


@torch.library.custom_op("prunus_tests::by_expert", mutates_args=())
def by_expert(rows: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    """Rows (T, K), sorted by expert, with the matrix (K, N) of their expert out of (E, K, N)."""
    starts = [0, *ends.tolist()]
    return torch.cat([rows[a:b] @ w for a, b, w in zip(starts, starts[1:], stack, strict=False)])


@by_expert.register_fake
def _(rows: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], stack.shape[2])


class Experts(nn.Module):
    """Every token goes to one of three experts of two layers."""

    def __init__(self, product: object) -> None:
        super().__init__()
        self.product = product
        self.embed, self.router = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.zeros(EXPERTS, 2 * HIDDEN, WIDTH))
        self.down = nn.Parameter(torch.zeros(EXPERTS, WIDTH, HIDDEN))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        chosen, order = self.router(x).argmax(-1).sort()
        ends = (chosen[:, None] <= torch.arange(EXPERTS)).sum(0).to(torch.int32)
        gate, value = self.product(x[order], self.up.transpose(1, 2), ends).chunk(2, -1)  # type: ignore[operator]
        y = self.product(gate.sigmoid() * value, self.down.transpose(1, 2), ends)  # type: ignore[operator]
        return self.head(x + y[order.argsort()])


def experts(product: object) -> Network:
    return Network(randomize(Experts(product), 2).eval(), (torch.randn(12, 5),))


@pytest.fixture
def named() -> object:
    """The operator of these tests is a product of groups."""
    RULES["prunus_tests::by_expert"] = RULES[torch.ops.aten._grouped_mm.default]
    yield by_expert
    del RULES["prunus_tests::by_expert"]


def test_hidden_units_and_width_leave_experts_stay(named: object) -> None:
    structure = pruned(experts(named))
    assert not structure.unknown
    assert sorted(free(structure).values()) == [WIDTH, HIDDEN]
    (hidden,) = [group for group in structure.prunable if group.size == HIDDEN]
    assert [(m.parameter, m.axis) for m in hidden.members] == [("up", 1), ("down", 2)]
    assert held(structure)["router"].startswith("is ordered or counted")


def test_without_a_rule_for_the_name() -> None:
    structure = structure_of(experts(by_expert))
    assert set(structure.unknown.values()) == {"prunus_tests.by_expert.default"}
    assert not free(structure)


def test_two_rules_for_a_name() -> None:
    rule("prunus_tests::nothing")(lambda run, node, a: run.solid(node))
    try:
        with pytest.raises(RuntimeError, match="two rules for prunus_tests::nothing"):
            rule("prunus_tests::nothing")(lambda run, node, a: run.solid(node))
    finally:
        del RULES["prunus_tests::nothing"]


# (x, y, ends) -> which way offsets cut; the last dimension of all sizes is a multiple of 4, as the kernel wants it
WAYS = {
    "rows": (lambda self, x: torch._grouped_mm(self.a(x), self.stack, ends(x, 3)), "stack"),
    "stack by columns": (lambda self, x: torch._grouped_mm(self.stack, self.a(x).T, ends(x, 3)).T, "stack"),
    "of equal number": (
        lambda self, x: torch._grouped_mm(self.a(x).expand(3, -1, -1), self.stack).sum(0),
        None,
    ),
}


def ends(x: Tensor, groups: int) -> Tensor:
    return torch.arange(1, groups + 1, dtype=torch.int32) * (x.shape[0] // groups)


@pytest.mark.parametrize("way", WAYS)
def test_the_ways_of_torch(way: str) -> None:
    function, _ = WAYS[way]
    parts = {"a": nn.Linear(4, 8), "head": nn.Linear(8, 4), "stack": torch.zeros(3, 8, 8)}
    run = Do(way, lambda self, x: self.head(function(self, x)), **parts)
    net = randomize(run, 3).eval()
    structure = prunus.analyze(net, torch.randn(12, 4))
    assert not structure.unknown
    assert free(structure).get("a") == 8


def test_operations_are_counted_as_predicted() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    structure = prunus.analyze(model, {"input_ids": torch.arange(12)[None], "use_cache": False})
    assert not structure.unknown
    result = prunus.compress(
        model, {"input_ids": torch.arange(12)[None], "use_cache": False}, target=prunus.Target(macs=0.6)
    )
    cost = CostModel(structure)
    assert cost.original.macs == count_macs(structure.captured)
    assert cost(structure.keep_labels(dict(result.plan.keep))).macs == count_macs(result.captured)
    assert result.report.verification["passed"]
