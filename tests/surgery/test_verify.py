"""A wrong network is caught, and the message says where it goes wrong."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.capture import Captured, capture
from prunus.errors import VerificationError
from prunus.inputs import Inputs
from prunus.surgery import verify
from prunus.surgery.verify import compare, random_inputs

from .hand_labels import Hand, give, kept, shake

ALL = torch.tensor([True])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, width: int, eps: float = 0.1) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(5, width),
            nn.LayerNorm(width, eps=eps),
            nn.Linear(width, 4),
        )

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.norm(self.first(x)).relu()
        return {"logits": self.last(h), "sign": self.last(h) > 0, "none": None}


def pruned(index: Tensor | None = None, eps: float = 0.1) -> tuple[Hand, Net, Tensor]:
    model, x = shake(Net(8)), torch.randn(3, 5)
    hand = Hand(model, x)
    units = hand.labels(8, {1, 4})
    hand.put(units, "p_first_weight p_first_bias p_norm_weight p_norm_bias", 0)
    hand.put(units, "linear layer_norm relu p_last_weight", 1)
    right = kept(8, {1, 4})
    small = Net(6, eps)
    give(small.first, model.first, right if index is None else index)
    give(small.norm, model.norm, right)
    give(small.last, model.last, into=right)
    return hand, small.eval(), x


def check(
    hand: Hand, small: nn.Module, small_captured: Captured | None = None, **options: Any
) -> verify.Verification:
    return compare(hand.captured, hand.tracks, hand.keep, small, small_captured, **options)


def test_a_right_network_passes_and_reports():
    hand, small, x = pruned()
    before = copy.deepcopy(small.state_dict())
    state = torch.get_rng_state()
    result = check(hand, small, capture(small, x))
    assert (
        result.passed
        and result.dtype == "float64"
        and result.tolerance == 1e-9
        and result.inputs_checked == 2
    )
    assert 0 <= result.max_relative_error < 1e-12
    assert json.loads(json.dumps(result.to_dict()))["inputs_checked"] == 2
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert check(hand, small, dtype=torch.float32).dtype == "float32"


def test_a_wrong_parameter_is_named():
    hand, small, x = pruned(index=torch.tensor([0, 1, 2, 3, 5, 6]))
    with pytest.raises(
        VerificationError, match=r"output.*first thing that differs is the parameter 'first.weight'"
    ):
        check(hand, small, capture(small, x))
    with pytest.raises(VerificationError, match="relative error of"):
        check(hand, small)  # without its graph, there is no search


def test_a_wrong_order_is_named():
    hand, small, x = pruned(index=torch.tensor([2, 0, 3, 5, 6, 7]))
    with pytest.raises(VerificationError, match=r"in another order at the parameter 'first.weight'"):
        check(hand, small, capture(small, x))


def test_the_first_wrong_node_is_named_with_its_place():
    hand, small, x = pruned(eps=0.1001)
    with pytest.raises(VerificationError) as caught:
        check(hand, small, capture(small, x))
    text = str(caught.value)
    assert "node 'layer_norm' (aten.layer_norm.default), module 'norm'" in text
    assert "h = self.norm(self.first(x)).relu()" in text and "(3, 8), cut (3, 6)" in text


def test_a_small_error_is_caught_in_float64_only():
    hand, small, x = pruned()
    small.last.bias.data[0] += 1e-6 * small.last.bias.abs().max()
    with pytest.raises(VerificationError, match=r"in float64, output.*parameter 'last.bias'"):
        check(hand, small, capture(small, x))
    assert check(hand, small, dtype=torch.float32).passed
    assert check(hand, small, tolerance=1e-3).passed


def test_a_module_that_is_not_its_graph_is_told_apart():
    hand, small, x = pruned()
    wrong = copy.deepcopy(small)
    wrong.last.bias.data[0] += 1
    with pytest.raises(VerificationError, match="No node of the cut graph that could be compared differs"):
        check(hand, wrong, capture(small, x))


def test_a_network_that_fails_is_located():
    hand, small, x = pruned()
    graph = capture(small, x)
    narrow = torch.randn(4, 5)
    broken = graph.with_(tensors={**graph.tensors, "p_last_weight": narrow})
    small.last.weight = nn.Parameter(narrow)
    with pytest.raises(VerificationError) as caught:
        check(hand, small, broken)
    text = str(caught.value)
    assert "it fails with RuntimeError" in text
    assert "The cut graph fails at node 'linear_1' (aten.linear.default), module 'last'" in text


class Returns(nn.Module):
    def __init__(self, module: nn.Module, change) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.module(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: {**out, "logits": out["logits"][:, :3]}, r"output\['logits'\] has shape \(3, 3\)"),
        (lambda out: {**out, "sign": ~out["sign"]}, r"output\['sign'\] .* error of inf"),
        (lambda out: {**out, "none": 3}, r"output\['none'\] is 3 instead of None"),
        (lambda out: {"logits": out["logits"]}, "returns 1 values instead of 3"),
        (lambda out: {**out, "logits": out["logits"] * float("nan")}, "output.* error of inf"),
    ],
)
def test_every_output_counts(change, message):
    hand, small, _ = pruned()
    with pytest.raises(VerificationError, match=message):
        check(hand, Returns(small, change))


def test_without_float64_it_says_why():
    def picky(out):
        if out["logits"].dtype == torch.float64:
            raise TypeError("only float32, please")
        return out

    hand, small, _ = pruned()
    result = check(hand, Returns(small, picky))
    assert result.passed and result.tolerance == 1e-4
    assert result.dtype == (
        "float32 (the cut network does not run in float64: TypeError: only float32, please)"
    )
    with pytest.raises(VerificationError):
        check(hand, Returns(small, lambda out: {**out, "logits": picky(out)["logits"] + 1}))


@torch.library.custom_op("prunus_tests::single", mutates_args=())
def single(x: Tensor) -> Tensor:
    return x.float().exp()


@single.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


def test_float32_inside_is_noticed():
    class Inside(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, width), nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.ops.prunus_tests.single(self.first(x)))

    model, x = Inside(8).eval(), torch.randn(3, 5)
    hand = Hand(model, x)
    small = copy.deepcopy(model)
    with torch.no_grad():  # the same but for rounding
        small.first.bias.mul_(1 + 3e-7)
    result = check(hand, small)
    assert result.passed and "prunus_tests.single" in result.dtype and result.dtype.startswith("float32 (")


def test_without_memory_it_says_so(monkeypatch):
    hand, small, _ = pruned()
    monkeypatch.setattr(verify, "free_bytes", lambda device: 2000)
    assert "more than a quarter" in check(hand, small).dtype
    monkeypatch.setattr(verify, "free_bytes", lambda device: None)
    assert check(hand, small).dtype == "float64"


class Through(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_an_original_that_yields_nan():
    always = Through(lambda x: (x - x) / (x - x))
    with pytest.raises(
        VerificationError, match="original model itself yields only NaN on the example inputs"
    ):
        compare(capture(always, torch.rand(2, 3)), {}, ALL, always)
    negative = Through(lambda x: (-x.abs() - 1).amin(1) * 0 + (x.amin(1) * 1).sqrt())
    x = torch.rand(2, 40) + 1
    result = compare(capture(negative, x), {}, ALL, negative)
    assert result.inputs_checked == 1 and "on the random inputs" in result.remarks[0]
    some = Through(lambda x: (x - 1).sqrt())
    x = torch.rand(2, 40) * 2
    result = compare(capture(some, x), {}, ALL, some)
    assert result.inputs_checked == 2 and "NaN in places on the example inputs" in result.remarks[0]
    with pytest.raises(VerificationError, match="error of inf"):
        compare(capture(some, x), {}, ALL, Through(lambda x: (x - 1).abs().sqrt()))


def test_nan_that_only_the_cut_brings():
    net = Through(lambda x: x.sum(1).sub(4).sqrt())
    hand = Hand(net, torch.full((2, 4), 1.5))
    hand.put(hand.labels(4, {0, 1}), "x", 1)
    with pytest.raises(VerificationError, match="yields NaN where the whole of it does not"):
        check(hand, Through(lambda x: x[:, 2:].sum(1).sub(4).sqrt()))


def test_infinities_are_equal_to_themselves():
    net = Through(lambda x: x.masked_fill(x > 0, float("-inf")))
    assert compare(capture(net, torch.randn(2, 8)), {}, ALL, net).passed


def test_a_module_with_memory_starts_afresh():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x + self.calls

    model = Counts()
    assert compare(capture(model, torch.randn(2, 3)), {}, ALL, model).inputs_checked == 2
    assert model.calls == 0


def test_random_draws_are_the_same_for_both():
    noisy = Through(lambda x: x + torch.randn_like(x))
    captured = capture(noisy, torch.randn(2, 3))
    assert compare(captured, {}, ALL, noisy).passed
    with pytest.raises(VerificationError, match="draws random numbers at node 'randn_like'"):
        compare(captured, {}, ALL, Through(lambda x: x + torch.rand_like(x)))


def test_random_inputs():
    class Takes(nn.Module):
        def forward(self, x: Tensor, ids: Tensor, mask: Tensor, flag: bool = True) -> Tensor:
            return x * mask + ids.sum() if flag else x

    x, ids = torch.rand(64, 50) * 7, torch.randint(0, 9, (64, 50))
    mask = (torch.rand(64, 50) > 0.5).float()
    captured = capture(Takes(), Inputs((x, ids), {"mask": mask, "flag": True}))
    made = random_inputs(captured, 3)
    assert (
        torch.equal(made.args[1], ids)
        and torch.equal(made.kwargs["mask"], mask)
        and made.kwargs["flag"] is True
    )
    noise = made.args[0]
    assert noise.shape == x.shape and noise.dtype == x.dtype and (noise < 0).any()
    assert abs(float(noise.square().mean().sqrt()) / float(x.square().mean().sqrt()) - 1) < 0.05
    assert torch.equal(noise, random_inputs(captured, 3).args[0])
    assert not torch.equal(noise, random_inputs(captured, 4).args[0])
    zero = capture(nn.ReLU(), torch.zeros(2, 5))
    assert random_inputs(zero, 0).args[0].std() > 0.3


def test_labels_of_another_shape_are_refused():
    hand, small, _ = pruned()
    hand.tracks["relu"] = (hand.tracks["p_first_weight"][0],)
    with pytest.raises(VerificationError, match="'relu' are for another shape"):
        check(hand, small)


def test_outputs_that_prove_nothing_are_noticed():
    hand, small, x = pruned(eps=0.2)
    for network in hand.captured.model, small:
        network.last.weight.data.zero_()
    assert "equal says little" in " ".join(check(hand, small).remarks)
    with pytest.raises(VerificationError, match=r"values inside differ.*node 'layer_norm'"):
        check(hand, small, capture(small, x))
    small.norm.eps = 0.1
    assert "node by node" in " ".join(check(hand, small, capture(small, x)).remarks)


def test_one_example_and_a_random_input_go_through_together(monkeypatch: pytest.MonkeyPatch):
    runs: list[str] = []
    expected = verify.Case._expected
    monkeypatch.setattr(
        verify.Case, "_expected", lambda case, masks: runs.append(case.kind) or expected(case, masks)
    )
    positive = torch.rand(1, 40) + 0.1
    clipped = capture(Through(lambda x: x.relu()), positive)
    assert compare(clipped, {}, ALL, Through(lambda x: x.relu())).inputs_checked == 2
    assert runs == ["example and random", "differently sized"]
    with pytest.raises(VerificationError, match="on the example and random inputs"):
        compare(clipped, {}, ALL, Through(lambda x: x * 1))  # right on the example
    with pytest.raises(VerificationError, match="on the example and random inputs"):
        compare(clipped, {}, ALL, Through(lambda x: x.relu() * (x.amin(1, keepdim=True) < 0)))


def test_each_of_two_inputs_is_judged_by_its_own_magnitude():
    def grown(x: Tensor, by: float) -> Tensor:
        low = x.amin(1, keepdim=True) < 0  # on random inputs only
        return torch.where(low, x * 1e12, x + by)

    captured = capture(Through(lambda x: grown(x, 0.0)), torch.rand(1, 40) + 0.1)
    assert compare(captured, {}, ALL, Through(lambda x: grown(x, 1e-12))).passed
    with pytest.raises(VerificationError, match="relative error of"):
        compare(captured, {}, ALL, Through(lambda x: grown(x, 1e-5)))


def test_one_by_one_where_the_pair_leaves_a_question():
    some = Through(lambda x: (x - 1).sqrt())
    result = compare(capture(some, torch.rand(1, 40) * 2), {}, ALL, some)
    assert result.inputs_checked == 2 and "NaN in places on the example inputs" in result.remarks[0]
    flat = Through(lambda x: x * 0 + 1)
    assert "equal says little" in " ".join(compare(capture(flat, torch.rand(1, 4)), {}, ALL, flat).remarks)


def test_integers_are_checked_once():
    model = nn.Embedding(9, 3)
    assert compare(capture(model, torch.randint(0, 9, (2, 5))), {}, ALL, model).inputs_checked == 1


def test_the_precision_that_was_asked_for_or_none():
    def picky(out):
        if out["logits"].dtype == torch.float64:
            raise TypeError("only float32, please")
        return out

    hand, small, _ = pruned()
    with pytest.raises(
        VerificationError, match=r"Cannot verify in float64, as was asked: .*only float32, please"
    ):
        check(hand, Returns(small, picky), dtype=torch.float64)
