"""Repair: what least squares promise, on networks small enough to know the answer."""

import copy

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.recovery import STEPS, recover
from prunus.recovery.least_squares import Moments, fit
from prunus.structure import find_structure
from prunus.surgery import cut, lift


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias, 0, 0.3)
    nn.init.normal_(layer.running_mean, 0, 0.3)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.inner1, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), norm(12)
        self.inner2, self.bn3 = nn.Conv2d(12, 8, 3, padding=1, bias=False), norm(8)
        self.deep = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + self.bn3(self.inner2(torch.relu(self.bn2(self.inner1(x)))))
        return self.head(torch.relu(self.deep(torch.relu(x))).mean((2, 3)))


def smooth(count: int, batches: int = 4, channels: int = 3, size: int = 8) -> list[Tensor]:
    """Inputs with structure: without any, nothing could make up for anything."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(batches * count, channels, 2, 2, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.05 * torch.randn(
        batches * count, channels, size, size, generator=generator
    )
    return list(images.split(count))


def removed(model: nn.Module, x: Tensor, remove: dict[str, list[int]]) -> tuple:
    structure = find_structure(capture(model, x))
    names = {layer: next(g.name for g in structure.prunable if layer in g.producers) for layer in remove}
    plan = prunus.plan(structure, method=prunus.ByIndex(remove={names[k]: v for k, v in remove.items()}))
    keep = structure.keep_labels(plan.keep)
    return structure, cut(structure, keep), keep


def error(model: nn.Module, small: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(model(x), small(x)) for x in data]
    missing = sum(float((a - b).square().sum()) for a, b in pairs)
    whole = torch.cat([a for a, _ in pairs])
    return missing / float((whole - whole.mean(0)).square().sum())


@pytest.mark.parametrize("seed", range(3))
def test_repair_brings_the_outputs_nearer(seed: int) -> None:
    torch.manual_seed(seed)
    model = Residual().eval()
    data = smooth(32)
    structure, small, keep = removed(model, data[0][:2], {"inner1": [0, 3, 5, 7, 9, 10]})
    plain = error(model, lift(small).eval(), data)
    repaired, report = recover(structure, small, keep, data)
    fixed = error(model, lift(repaired).eval(), data)
    assert fixed < 0.5 * plain
    assert {r.layer for r in report.repairs} >= {"inner2"} and report.samples == 128
    assert all(r.after < r.before for r in report.repairs)
    fresh = [x.flip(3) for x in smooth(16, 2)]
    assert error(model, lift(repaired).eval(), fresh) < error(model, lift(small).eval(), fresh)


def test_the_shortcut_corrects_what_came_before() -> None:
    """With the stream itself cut, the last layer of a block also makes up for what the stream lacks."""
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(32)
    structure, small, keep = removed(model, data[0][:2], {"conv1": [1], "inner1": [1, 2]})
    repaired, report = recover(structure, small, keep, data)
    assert error(model, lift(repaired).eval(), data) < 0.7 * error(model, lift(small).eval(), data)
    assert "deep" in {r.layer for r in report.repairs} or "deep" in report.left


def test_a_duplicate_is_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[1], model[0].bias[1]
    data = smooth(32)
    structure, small, keep = removed(model, data[0][:2], {"0": [5]})
    assert error(model, lift(small).eval(), data) > 1e-3
    repaired, _ = recover(structure, small, keep, data)
    assert error(model, lift(repaired).eval(), data) < 1e-9


@pytest.mark.parametrize("groups", [1, 2])
def test_a_duplicate_in_front_of_a_transposed_convolution_is_made_up_for_exactly(groups: int) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=groups)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), up).eval()
    with torch.no_grad():  # each group of inputs loses one
        for copy_, source in ((2, 1), (5, 4)):
            model[0].weight[copy_], model[0].bias[copy_] = model[0].weight[source], model[0].bias[source]
    data = smooth(32)
    structure, small, keep = removed(model, data[0][:2], {"0": [2, 5]})
    assert error(model, lift(small).eval(), data) > 1e-3
    repaired, report = recover(structure, small, keep, data)
    assert [r.layer for r in report.repairs] == ["2"]
    # sums of products in single precision and the least ridge leave about 1e-9, depending on the order of rows
    assert error(model, lift(repaired).eval(), data) < 2e-9


def test_a_dependent_channel_of_a_linear_layer_is_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 4)).eval()  # three inputs: any three of six suffice
    data = [torch.randn(64, 3) for _ in range(4)]
    structure, small, keep = removed(model, data[0], {"0": [0, 2, 5]})
    repaired, _ = recover(structure, small, keep, data)
    assert error(model, lift(repaired).eval(), data) < 1e-8


def test_the_original_and_what_was_cut_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(16)
    before = copy.deepcopy(model.state_dict())
    structure, small, keep = removed(model, data[0][:2], {"inner1": [0, 1, 2]})
    tensors = {name: t.detach().clone() for name, t in small.tensors.items()}
    repaired, _ = recover(structure, small, keep, data)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(t, tensors[name]) for name, t in small.tensors.items())
    assert any(not torch.equal(t, tensors[name]) for name, t in repaired.tensors.items())


def test_activations_that_write_in_place_change_nothing() -> None:
    """Running statistics are repaired: what only activations write to is no reason to go on with old ones."""
    torch.manual_seed(0)
    model = Residual().eval()

    class InPlace(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu_(self.bn1(self.conv1(x)))
            x = x + self.bn3(self.inner2(torch.relu_(self.bn2(self.inner1(x)))))
            return self.head(torch.relu_(self.deep(torch.relu_(x))).mean((2, 3)))

    other = InPlace().eval()
    other.load_state_dict(model.state_dict())
    data = smooth(32)
    found = []
    for net in (model, other):
        structure, small, keep = removed(net, data[0][:2], {"conv1": [1], "inner1": [0, 3, 5, 7]})
        repaired, report = recover(structure, small, keep, data)
        assert any(r.layer == "inner1" for r in report.repairs)  # its offset goes into a running mean
        found.append(lift(repaired).eval())
    for x in data:
        with torch.no_grad():
            torch.testing.assert_close(found[1](x), found[0](x), rtol=1e-4, atol=1e-5)


def test_noise_is_not_fitted() -> None:
    """Fewer rows than weights: what the held-out rows do not confirm is not done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    data = [torch.randn(4, 60) for _ in range(4)]
    structure, small, keep = removed(model, data[0], {"0": list(range(0, 40, 2))})
    repaired, report = recover(structure, small, keep, data)
    fresh = [torch.randn(256, 60)]
    assert error(model, lift(repaired).eval(), fresh) < 1.3 * error(model, lift(small).eval(), fresh)
    for repair in report.repairs:
        assert repair.after < repair.before


# --- the fit itself


def moments(x: Tensor, t: Tensor) -> Moments:
    made = Moments()
    made.add(x[:, None], t[:, None])
    return made


def test_the_error_that_is_left_is_the_schur_complement() -> None:
    """Leaving out channels P costs tr W_P (C_PP - C_PS C_SS^-1 C_SP) W_P^T, and the fit attains that."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    x = torch.randn(4000, 7, generator=generator, dtype=torch.float64) @ mixing + 1.5
    weight = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    kept, gone = [0, 2, 3, 6], [1, 4, 5]
    covariance = torch.cov(x.T, correction=0)
    schur = covariance[gone][:, gone] - covariance[gone][:, kept] @ torch.linalg.solve(
        covariance[kept][:, kept], covariance[kept][:, gone]
    )
    expected = float(torch.trace(weight[:, gone] @ schur @ weight[:, gone].T))
    missing = x @ weight.T - x[:, kept] @ weight[:, kept].T
    every = moments(x[:, kept], missing)
    found = fit(every, every, bias=True)
    assert found.weight is not None and found.bias is not None
    left = missing - x[:, kept] @ found.weight[0].T - found.bias[0]
    assert float(left.square().sum(1).mean()) == pytest.approx(expected, rel=1e-5)
    assert found.after == pytest.approx(expected, rel=1e-5)


def test_more_freedom_never_does_worse_on_what_is_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 5, generator=generator, dtype=torch.float64) + 1
    t = torch.randn(500, 2, generator=generator, dtype=torch.float64) + 0.2 * x[:, :2]
    every = moments(x, t)
    nothing = float(t.square().sum(1).mean())
    mean_only = float((t - t.mean(0)).square().sum(1).mean())
    whole = fit(every, every, bias=True)
    assert whole.after <= mean_only <= nothing and whole.before == pytest.approx(nothing)
    assert fit(every, every, bias=False).after <= nothing


def test_groups_are_fitted_each_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    both = Moments()
    both.add(x, torch.einsum("rgd,god->rgo", x, weight))
    found = fit(both, both, bias=False)
    assert found.weight is not None and torch.allclose(found.weight, weight, atol=1e-4)


def test_nothing_is_done_where_nothing_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    train = moments(*(torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2)))
    held = moments(*(torch.randn(500, 5, generator=generator, dtype=torch.float64) for _ in range(2)))
    held.t, held.tx = torch.zeros_like(held.t), torch.zeros_like(held.tx)
    found = fit(train, held, bias=False)
    assert found.weight is None and found.after == found.before


# --- patches are what a convolution sees


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=(0, 2)),
        nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 6, 3, padding="valid", bias=False),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(4, 6, 5, stride=3, padding=2),
        nn.Conv3d(4, 6, 2, stride=(1, 2, 1), padding=1),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 3), dilation=(2, 1), groups=2, bias=False),
        nn.ConvTranspose2d(4, 4, 2, stride=3, padding=(2, 0), output_padding=(2, 1), groups=4),
        nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2),
        nn.ConvTranspose3d(4, 6, 2, stride=(1, 2, 1)),
    ],
    ids=lambda layer: f"{type(layer).__name__}-{layer.stride}-{layer.padding}-{layer.groups}",
)
def test_inputs_times_weights_are_the_outputs(layer: nn.Module) -> None:
    from prunus.recovery.layers import find_layers

    torch.manual_seed(0)
    sizes = {1: (11,), 2: (7, 6), 3: (4, 5, 3)}[len(layer.kernel_size)]
    x = torch.randn(2, 4, *sizes, dtype=torch.float64)
    captured = capture(nn.Sequential(layer.double(), nn.ReLU()).eval(), x)
    (found,) = find_layers(captured).values()
    weight = captured.tensors[found.weight].detach()
    given = x
    if found.source.op != "placeholder":  # padded by an operator of its own
        given = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    y = layer(x).detach()
    channels_last = y.movedim(1, -1)
    wanted = (
        channels_last.reshape(-1, channels_last.shape[-1]) if found.spatial else y.reshape(-1, y.shape[-1])
    )
    rows = torch.randperm(len(wanted))[:17]
    assert torch.equal(found.outputs(y, rows), wanted[rows])
    patches = found.inputs(given, rows, tuple(weight.shape[2:]))
    matrix = found.matrix(weight)
    assert torch.equal(found.as_weight(matrix, weight), weight)
    got = torch.einsum("rgd,god->rgo", patches, matrix).flatten(1)
    got = got if layer.bias is None else got + layer.bias.detach()
    assert torch.allclose(got, wanted[rows], atol=1e-12)


# --- in one call


def test_compress_repairs_when_it_is_given_data() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(32)
    target = prunus.Target(macs=0.6)
    plain = prunus.compress(model, data[0][:2], target=target, data=data, recover=False)
    result = prunus.compress(model, data[0][:2], target=target, data=data)
    assert plain.plan == result.plan and result.plan.method == "obs" and result.plan.allocation == "knapsack"
    assert plain.report.recovery is None and result.report.recovery is not None
    assert error(model, result.model, data) < error(model, plain.model, data)
    assert isinstance(result.model, Residual)
    assert "Repaired: " in str(result.report) and "Repaired" not in str(plain.report)
    assert result.report.to_dict()["recovery"]["samples"] == 128
    groups = result.report.recovery["groups"]
    assert (
        groups
        and set(groups) <= set(result.plan.keep)
        and all(e["after"] < e["before"] for e in groups.values())
    )
    assert "Most error left behind groups: " in str(result.report)
    again = prunus.apply(model, result.plan, example_inputs=data[0][:2], data=data)
    assert error(result.model, again.model, data) < 1e-10


def test_a_generator_is_data_too() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    result = prunus.compress(
        model, torch.randn(2, 3, 8, 8), target=prunus.Target(macs=0.6), data=iter(smooth(32))
    )
    assert result.report.recovery and result.report.recovery["repairs"]


def test_everything_kept_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    result = prunus.compress(model, torch.randn(2, 3, 8, 8), target=prunus.Target(macs=1.0), data=smooth(16))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in result.model.state_dict().items())


def test_an_unknown_step_names_those_that_exist() -> None:
    with pytest.raises(prunus.ConfigError, match="compensate, batch_norm"):
        prunus.compress(
            Residual().eval(), torch.randn(2, 3, 8, 8), target=prunus.Target(macs=0.5), recover=["magic"]
        )


def test_one_batch_is_enough() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    (data,) = smooth(64, 1)
    structure, small, keep = removed(model, data[:2], {"inner1": [0, 1, 2, 3]})
    repaired, report = recover(structure, small, keep, [data])
    assert report.samples == 64 and error(model, lift(repaired).eval(), [data]) < error(
        model, lift(small).eval(), [data]
    )


def test_batch_norm_alone() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    data = smooth(32)
    structure, small, keep = removed(model, data[0][:2], {"inner1": [0, 1, 2, 3]})
    repaired, report = recover(structure, small, keep, data, steps=("batch_norm",))
    assert {r.step for r in report.repairs} == {"batch_norm"} and "bn3" in {r.layer for r in report.repairs}
    assert STEPS == ("compensate", "batch_norm")
    module = lift(repaired).eval()
    seen: list[Tensor] = []
    module.get_submodule("bn3").register_forward_hook(lambda m, i, o: seen.append(i[0]))
    with torch.no_grad():
        for x in data:
            module(x)
    every = torch.cat(seen).transpose(0, 1).flatten(1)
    assert torch.allclose(module.get_buffer("bn3.running_mean"), every.mean(1), atol=1e-5)
    assert torch.allclose(module.get_buffer("bn3.running_var"), every.var(1), rtol=1e-4)


def test_inputs_that_hardly_vary_about_a_large_mean_do_no_harm() -> None:
    """As those of a saturated activation: in products of single precision, their variance is noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 1, 6, generator=generator)
    x[:, :, 3:] = 6 + 1e-4 * x[:, :, 3:]
    truth = torch.randn(1, 2, 6, generator=generator)
    t = torch.einsum("rgd,god->rgo", x, truth) + 0.1 * torch.randn(4096, 1, 2, generator=generator)
    sums = Moments(), Moments()
    for i, (part, target) in enumerate(zip(x.split(512), t.split(512), strict=True)):
        sums[i % 2].add(part, target)
    exact = Moments()
    exact.add(x[:512].double(), t[:512].double())
    single = Moments()
    single.add(x[:512], t[:512])
    for mine, theirs in zip(single.centered(True), exact.centered(True), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-9)
    found = fit(sums[0], sums[1], bias=True)
    assert found.weight is not None and 0 < found.after <= found.before
    torch.testing.assert_close(found.weight[..., :3], truth[..., :3].double(), rtol=0, atol=0.02)
