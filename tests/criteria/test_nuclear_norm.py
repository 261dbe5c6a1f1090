"""Nuclear norms and ranks of feature maps, against singular values map by map."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.criteria import HRank, NuclearNorm
from prunus.criteria.spectrum import as_matrices, nuclear_norms, ranks
from prunus.errors import ConfigError
from prunus.evidence import collect
from tests.allocation.nets import network

SHAPES = [(1, 1), (1, 7), (2, 2), (2, 9), (5, 3), (8, 8), (16, 11), (56, 56)]


def by_numpy(matrices: Tensor) -> np.ndarray:
    flat = matrices.double().reshape(-1, *matrices.shape[-2:]).numpy()
    values = [np.linalg.svd(one, compute_uv=False).sum() for one in flat]
    return np.array(values).reshape(matrices.shape[:-2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["full", "rectified", "low rank", "constant", "zero"])
def test_sums_of_singular_values(shape: tuple[int, int], kind: str) -> None:
    x = torch.randn(3, 4, *shape)
    made = {
        "full": x,
        "rectified": x.relu(),
        "low rank": x[..., :1] @ x[..., :1, :] + 1e-3 * x,
        "constant": torch.full_like(x, 2.5),
        "zero": torch.zeros_like(x),
    }[kind]
    found = nuclear_norms(made)
    np.testing.assert_allclose(found.numpy(), by_numpy(made), rtol=1e-6, atol=1e-6)
    norm = made.double().flatten(2).norm(dim=2)
    most = norm * min(shape) ** 0.5
    assert bool((found >= norm * (1 - 1e-9)).all()) and bool((found <= most * (1 + 1e-6) + 1e-9).all())
    torch.testing.assert_close(nuclear_norms(made.mT), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nuclear_norms(3 * made), 3 * found, rtol=1e-6, atol=1e-6)


def test_turning_rows_changes_nothing() -> None:
    x = torch.randn(5, 12, 9, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q @ x
    torch.testing.assert_close(nuclear_norms(turned), nuclear_norms(x))


def test_ranks() -> None:
    x = torch.randn(6, 10, 8)
    for rank in range(1, 8):
        low = x[..., :rank] @ x[..., :rank, :]
        assert ranks(low).tolist() == [rank] * 6
    assert ranks(x).tolist() == [8] * 6 and ranks(torch.zeros(2, 4, 4)).tolist() == [0, 0]
    expected = [np.linalg.matrix_rank(m) for m in x.relu().numpy()]
    assert ranks(x.relu()).tolist() == expected


def test_maps_of_any_number_of_axes() -> None:
    x = torch.randn(4, 5, 3, 6, 7)
    assert as_matrices(x, "batch").shape == (4, 15, 6, 7)
    assert as_matrices(x[..., 0, 0], "batch").shape == (4, 1, 5, 3)
    assert as_matrices(x[..., 0, 0], "vector").shape == (4, 5, 1, 3)
    assert as_matrices(x[:, :, 0, 0, 0], "batch").shape == (4, 5, 1, 1)
    assert float(as_matrices(x[:, :, 0], "batch", center=True).mean((2, 3)).abs().max()) < 1e-6


def test_scores_are_means_over_samples_of_maps_after_activation() -> None:
    net, x = network("residual")
    structure = prunus.analyze(net, x)
    data = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    maps: dict[str, list[Tensor]] = {}
    for name in ("conv1", "conv2", "stem"):
        getattr(net, name).register_forward_hook(
            lambda m, a, out, name=name: maps.setdefault(name, []).append(out.detach())
        )
    reads: list[Tensor] = []
    net.conv2.register_forward_pre_hook(lambda m, a: reads.append(a[0].detach()))  # type: ignore[union-attr]
    for batch in data:
        net(batch)
    after = collect(structure, NuclearNorm().needs, data).per_sample("nuclear_norm:after:batch", "conv1")
    expected = by_numpy(torch.cat(reads)).mean(0)
    np.testing.assert_allclose(after["conv2"].numpy(), expected, rtol=1e-5)
    before = collect(structure, NuclearNorm("before").needs, data).per_sample(
        "nuclear_norm:before:batch", "add"
    )
    for layer in ("stem", "conv2"):
        np.testing.assert_allclose(before[layer].numpy(), by_numpy(torch.cat(maps[layer])).mean(0), rtol=1e-5)
    made = prunus.plan(structure, method=NuclearNorm(), ratio={"conv1": 0.5}, data=data)
    assert made.keep["conv1"] == tuple(sorted(np.argsort(-expected, kind="stable")[:6].tolist()))
    assert made.method == "nuclear_norm"


def test_coupled_layers_are_normalized_one_by_one() -> None:
    """Their maps before activation, each divided by its sum, then averaged."""
    net, x = network("residual")
    structure = prunus.analyze(net, x)
    data = [torch.randn(6, 3, 8, 8)]
    method = NuclearNorm("before")
    seen = collect(structure, method.needs, data).per_sample("nuclear_norm:before:batch", "add")
    options = prunus.Options(layer_norm="tss_norm", policy="average")
    made = prunus.plan(structure, method=method, ratio={"add": 0.5}, data=data, options=options)
    mean = sum(s / s.sum() for s in seen.values())
    assert made.keep["add"] == tuple(sorted(mean.argsort(descending=True, stable=True)[:4].tolist()))  # type: ignore[union-attr]


@pytest.mark.parametrize("tokens", ["batch", "vector"])
def test_tokens(tokens: str) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2)).eval()
    structure = prunus.analyze(net, torch.randn(2, 7, 5))
    data = torch.randn(8, 7, 5)
    method = NuclearNorm(tokens=tokens)
    found = collect(structure, method.needs, [data]).per_sample(method._key, "0")["2"]
    hidden = net[:2](data).detach()
    per_unit = hidden.permute(2, 0, 1)
    expected = by_numpy(per_unit) if tokens == "batch" else per_unit.norm(dim=2).sum(1).numpy()
    np.testing.assert_allclose(found.numpy() * 8, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "later"}, "activation='later' is none of 'after', 'before'"),
        ({"tokens": "grid"}, "tokens='grid' is none of 'batch', 'vector'"),
        ({"center": 1}, "center=1 is none of False, True"),
    ],
)
def test_unknown_options_list_those_that_are_known(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NuclearNorm(**arguments)


def test_ranks_choose_too() -> None:
    net, x = network("residual")
    nn.init.constant_(net.bn1.bias, 1.0)  # type: ignore[union-attr]
    net.bn1.bias.data[3] = -100.0  # nothing is left of its maps  # type: ignore[union-attr]
    nn.init.constant_(net.bn1.weight, 0.1)  # type: ignore[union-attr]
    made = prunus.compress(net, x, method=HRank(), ratio={"conv1": 0.05}, data=[torch.randn(4, 3, 8, 8)])
    assert set(range(12)) - set(made.plan.keep["conv1"]) == {3}


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (8, [(32, 16), (16, 32), (8, 64)]),  # residual network for images of 32 x 32
        (1, [(112, 64), (56, 640), (28, 1536), (14, 4096), (7, 5120)]),  # one with 50 layers, for 224 x 224
    ],
    ids=["32 px", "224 px"],
)
def test_twice_as_fast_as_one_map_after_another(images: int, sizes: list[tuple[int, int]]) -> None:
    """Maps of the sizes, and in the numbers, of real networks."""
    maps = [torch.randn(images * channels, size, size).relu() for size, channels in sizes]

    def one_by_one() -> list[Tensor]:
        return [torch.stack([torch.linalg.svdvals(one).sum() for one in batch]) for batch in maps]

    def at_once() -> list[Tensor]:
        return [nuclear_norms(batch) for batch in maps]

    for mine, theirs in zip(at_once(), one_by_one(), strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=1e-4, atol=0)
    slow = fast = float("inf")
    for _ in range(4):  # by turns: whatever else the machine does then slows both
        began = time.perf_counter()
        one_by_one()
        middle = time.perf_counter()
        at_once()
        slow, fast = min(slow, middle - began), min(fast, time.perf_counter() - middle)
    assert slow / fast > 1.5, f"{slow / fast:.1f} times; 2.3 on a quiet machine"
