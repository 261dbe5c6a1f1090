"""One pass over data: what is summed, and that nothing else is kept or changed."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.criteria import FLAP, SNP, NuclearNorm, Taylor
from prunus.errors import ConfigError, SourceError
from prunus.evidence import Evidence, Need, Progress, collect
from tests.allocation.nets import NETS, layers, network


def total(x: Tensor) -> Tensor:
    """(positions,) sums over samples and maps."""
    return x.double().flatten(1).sum(1)


MADE, USED, READ = (Need(f"sum:{where}", where, total) for where in ("made", "used", "read"))


def batches_of(example: Tensor, count: int = 3, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size, *example.shape[1:])
    if not example.is_floating_point():
        return [torch.randint(0, 20, shape, generator=generator) for _ in range(count)]
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_what_layers_make_and_read() -> None:
    """Against hooks on the modules of a residual network."""
    net, x = network("residual")
    data = batches_of(x)
    structure = prunus.analyze(net, x)
    evidence = collect(structure, [MADE, USED, READ], data)
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        sums = value.detach().double().sum((0, *range(2, value.dim())))
        seen[name] = seen.get(name, torch.zeros(())) + sums

    for name in ("stem", "conv1", "conv2", "head"):
        module = getattr(net, name)
        module.register_forward_hook(lambda m, a, out, name=name: keep(f"made {name}", out))
        module.register_forward_pre_hook(lambda m, a, name=name: keep(f"read {name}", a[0]))
    for batch in data:
        net(batch)
    sums = evidence.sums
    assert set(sums["sum:made"]["add"]) == {"stem", "conv2"}
    assert set(sums["sum:read"]["add"]) == {"conv1", "head"}
    for group, layer in (("add", "stem"), ("add", "conv2"), ("conv1", "conv1")):
        torch.testing.assert_close(
            sums["sum:made"][group][layer], seen[f"made {layer}"], rtol=1e-5, atol=1e-4
        )
    for group, layer in (("add", "conv1"), ("add", "head"), ("conv1", "conv2")):
        torch.testing.assert_close(
            sums["sum:read"][group][layer], seen[f"read {layer}"], rtol=1e-5, atol=1e-4
        )
    # the head reads means of maps; what is used are the maps: 64 numbers each
    used = sums["sum:used"]["add"]["head"]
    torch.testing.assert_close(used, 64 * seen["read head"], rtol=1e-5, atol=1e-4)
    assert evidence.samples == 12


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_can_be_looked_at(name: str) -> None:
    net, x = network(name)
    structure = prunus.analyze(net, x)
    evidence = collect(structure, [MADE, USED, READ, *FLAP().needs, *NuclearNorm().needs], batches_of(x, 2))
    for group in structure.prunable:
        for key in ("sum:used", "moments"):
            assert evidence.has(key, group.name), (key, group.name)
            for found in evidence.sums[key][group.name].values():
                assert found.shape[0] == group.size and bool(torch.isfinite(found).all())


def test_channels_flattened_into_a_linear_layer_are_seen_as_maps() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    structure = prunus.analyze(net, torch.randn(2, 3, 8, 8))
    shapes = []

    def shape(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return total(x)

    collect(structure, [Need("u", "used", shape), Need("r", "read", shape)], [torch.randn(5, 3, 8, 8)])
    assert shapes == [(4, 5, 6, 6), (4, 5, 36)]


class MergedHeads(nn.Module):
    """Heads are a part of the batch axis, as in older attention code."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(6, 12),
            nn.Linear(6, 12),
            nn.Linear(6, 12),
            nn.Linear(12, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(b, n, 3, 4).transpose(1, 2).reshape(b * 3, n, 4)

        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.out(y.view(b, 3, n, 4).transpose(1, 2).reshape(b, n, 12))


def test_batches_of_any_size_where_heads_are_merged_with_the_batch() -> None:
    net = MergedHeads().eval()
    structure = prunus.analyze(net, torch.randn(2, 5, 6))
    x = torch.randn(7, 5, 6)
    needs = [READ, *SNP().needs]
    at_once, apart = collect(structure, needs, [x]), collect(structure, needs, [x[:3], x[3:]])
    pairs = next(g for g in structure.prunable if not g.outer and "q" in g.producers)
    for key in at_once.sums:
        for layer, found in at_once.sums[key][pairs.name].items():
            torch.testing.assert_close(found, apart.sums[key][pairs.name][layer])
    expected = net.q(x).double().sum((0, 1))
    left = at_once.sums["sum:read"][pairs.name]
    torch.testing.assert_close(
        next(v for k, v in left.items() if k.endswith(":0")), expected, rtol=1e-5, atol=1e-5
    )


def test_no_batch_is_kept() -> None:
    net = layers(6, 16, 3).eval()
    structure = prunus.analyze(net, torch.randn(4, 6))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal most
        for _ in range(20):
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            batch = torch.randn(8, 6)
            alive.append(weakref.ref(batch))
            yield batch, torch.zeros(8, dtype=torch.long)

    evidence = collect(structure, [*Taylor().needs, *NuclearNorm().needs, READ], stream())
    assert evidence.samples == 160 and most <= 2
    size = sum(t.numel() for _, t in evidence._flat())
    assert size == 3 * 16  # sums alone


def test_the_model_is_left_as_found() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("scale", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            return self.b(F.relu(self.a(x) * self.scale, inplace=True))

    net, x = Writes().eval(), torch.randn(4, 6)
    structure = prunus.analyze(net, x.clone())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect(structure, [READ], [x])
    given = x.clone()
    collect(structure, [READ, *Taylor().needs], [x], loss=lambda out, batch: out.square().mean())
    assert torch.equal(x, given)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in net.parameters())


def test_progress_tells_the_time_before_and_after() -> None:
    net, x = network("residual")
    said: list[Progress] = []
    collect(prunus.analyze(net, x), [READ], batches_of(x, 3, 16), progress=said.append)
    assert [p.batches for p in said] == [0, 1, 2, 3] and {p.total for p in said} == {3}
    assert said[0].seconds_left is not None and said[0].seconds_left > 0 and said[-1].seconds_left == 0
    streamed: list[Progress] = []
    collect(prunus.analyze(net, x), [READ], iter(batches_of(x, 2)), progress=streamed.append)
    assert [p.total for p in streamed] == [None] * 3 and streamed[-1].seconds_left is None


# --- what cannot be used

GOOD = torch.randn(4, 6)
BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "data is empty"),
    "no iterable": (3, "data is a int: pass an iterable of batches"),
    "nothing": (None, "data is missing"),
    "a path of nothing": ("images", r"^images: there is no \.npy, \.npz, \.safetensors file there\.$"),
    "another width": (
        [GOOD, torch.randn(4, 5)],
        r"batch 1 of data, input '.*' has shape \(4, 5\); the model takes \(any, 6\)",
    ),
    "another rank": ([GOOD[0]], r"batch 0 of data, input '.*' has shape \(6,\)"),
    "no samples": ([GOOD[:0]], "there is nothing in it"),
    "NaN": ([GOOD, GOOD, GOOD * float("nan")], "batch 2 of data, input '.*' holds NaN"),
    "whole numbers": ([GOOD.long()], "is of torch.int64; the model takes torch.float32"),
    "a dictionary": (
        [{"x": GOOD}],
        "batch 0 of data lacks input; it has x, and the model was captured with input",
    ),
    "an object": ([object()], "batch 0 of data is a object"),
    "lists of numbers": ([[[1.0, 2.0]]], "is not a tensor|is a .*, not a tensor|has .* values where"),
    "no values": ([()], "batch 0 of data has 0 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_does_not_fit_is_refused(case: str) -> None:
    data, message = BAD[case]
    structure = prunus.analyze(layers(6, 8, 3).eval(), torch.randn(2, 6))
    error = SourceError if isinstance(data, str) else ConfigError
    with pytest.raises(error, match=message):
        collect(structure, [READ], data)


def test_a_list_is_looked_through_before_anything_runs() -> None:
    structure = prunus.analyze(layers(6, 8, 3).eval(), torch.randn(2, 6))
    ran = []

    def seen(x: Tensor) -> Tensor:
        ran.append(x)
        return total(x)

    for data, runs in ([GOOD, GOOD[:, :5]], 0), (iter([GOOD, GOOD[:, :5]]), 1):
        with pytest.raises(ConfigError, match="batch 1 of data"):
            collect(structure, [Need("seen", "read", seen)], data)
        assert len(ran) == runs


def test_keywords_are_chosen_and_what_is_left_are_labels() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, *, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"logits": self.b(self.a(pixels).relu() * mask)}

    inputs = {"pixels": torch.randn(4, 6), "mask": torch.ones(4, 1)}
    structure = prunus.analyze(Net().eval(), inputs)
    batch = {"labels": torch.tensor([0, 1, 2, 0]), "mask": inputs["mask"], "pixels": inputs["pixels"]}
    evidence = collect(structure, Taylor().needs, [batch])
    assert evidence.samples == 4 and float(next(iter(evidence.sums["taylor:1"]["a"].values())).min()) >= 0
    pairs = collect(structure, Taylor().needs, [(inputs, batch["labels"])])
    torch.testing.assert_close(pairs.sums["taylor:1"]["a"]["*"], evidence.sums["taylor:1"]["a"]["*"])
    with pytest.raises(ConfigError, match="batch 0 of data lacks mask; it has pixels"):
        collect(structure, [READ], [{"pixels": inputs["pixels"]}])
    whole = collect(structure, [READ], {k: v.repeat(20, 1) for k, v in inputs.items()})
    assert whole.samples == 80


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, batch: out, r"loss must return a scalar tensor, got a tensor of shape \(4, 3\)"),
        (lambda out, batch: 1.0, "got float"),
        (lambda out, batch: torch.tensor(1.0), "does not depend on the outputs"),
        (lambda out, batch: out.mean() * float("nan"), "the loss is nan"),
        (None, "batches carry no labels: pass loss="),
    ],
)
def test_losses_without_a_gradient_are_refused(loss: Any, message: str) -> None:
    structure = prunus.analyze(layers(6, 8, 3).eval(), torch.randn(2, 6))
    with pytest.raises(ConfigError, match=message):
        collect(structure, Taylor().needs, [GOOD], loss=loss)
    with pytest.raises(ConfigError, match="are no classes"):
        collect(structure, Taylor().needs, [(GOOD, torch.randn(4))])


def test_activations_that_are_not_finite_are_refused() -> None:
    net = layers(6, 8, 3).eval()
    nn.init.ones_(net[0].weight)  # type: ignore[index]
    structure = prunus.analyze(net, torch.randn(2, 6))
    with pytest.raises(ConfigError, match=r"the activations of '.*' are NaN or infinite"):
        collect(structure, [READ], [torch.full((2, 6), 3e38)])


def test_evidence_in_shares_is_that_of_one_pass(tmp_path: Any) -> None:
    net, x = network("packed attention")
    structure = prunus.analyze(net, x)
    needs = [*FLAP().needs, *SNP().needs, *NuclearNorm().needs, *Taylor().needs]
    data = batches_of(x, 6)
    loss = lambda out, batch: out.square().mean()  # noqa: E731
    whole = collect(structure, needs, data, loss=loss)
    parts = [collect(structure, needs, data[i::3], loss=loss) for i in range(3)]
    for i, part in enumerate(parts):
        part.save(tmp_path / f"{i}.safetensors")
    loaded = [Evidence.load(tmp_path / f"{i}.safetensors") for i in range(3)]
    merged = loaded[0].merge(loaded[1:])
    assert merged.samples == whole.samples == 24 and merged.architecture == whole.architecture
    flat = dict(merged._flat())
    assert flat.keys() == dict(whole._flat()).keys() and flat
    for place, expected in whole._flat():
        torch.testing.assert_close(flat[place], expected, rtol=1e-12, atol=1e-12)
    again = loaded[0].merge(loaded[1:])
    assert all(torch.equal(total, flat[place]) for place, total in again._flat()), (
        "merging changed its operands"
    )


def test_evidence_of_something_else_is_refused(tmp_path: Any) -> None:
    net = prunus.analyze(layers(6, 8, 3).eval(), torch.randn(2, 6))
    other = prunus.analyze(layers(6, 9, 3).eval(), torch.randn(2, 6))
    mine, theirs = collect(net, [READ], [GOOD]), collect(other, [READ], [GOOD])
    with pytest.raises(ConfigError, match="different models"):
        mine.merge([theirs])
    with pytest.raises(ConfigError, match=r"different sums \(sum:made, sum:read\)"):
        mine.merge([collect(net, [MADE], [GOOD])])
    with pytest.raises(ConfigError, match="another architecture"):
        prunus.plan(net, method="flap", ratio=0.5, data=theirs)
    with pytest.raises(ConfigError, match=r"lacks what flap needs \(moments\)"):
        prunus.plan(net, method="flap", ratio=0.5, data=mine)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        Evidence.load(tmp_path / "no.safetensors")
    with pytest.raises(ConfigError, match="There is no file"):
        Evidence.load(tmp_path / "missing.safetensors")
    with pytest.raises(ConfigError, match="cannot be written"):
        mine.save(tmp_path / "no folder" / "e.safetensors")


@pytest.mark.parametrize("method", ["nuclear_norm", "hrank", "taylor", "flap"])
def test_what_is_missing_is_said_before_anything_runs(method: str) -> None:
    net = layers(6, 8, 3).eval()
    with pytest.raises(
        ConfigError, match=f"{method} needs data to score 1 of 1 groups: pass data="
    ) as caught:
        prunus.compress(net, torch.randn(2, 6), method=method, ratio=0.5)
    assert ("loss=" in str(caught.value)) == (method == "taylor")
    with pytest.raises(ConfigError, match="loss is a int: pass loss=, a function"):
        prunus.compress(net, torch.randn(2, 6), method=method, ratio=0.5, data=[GOOD], loss=3)  # type: ignore[arg-type]
