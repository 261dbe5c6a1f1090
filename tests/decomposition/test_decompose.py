"""`prunus.decompose` as a user sees it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import prunus
from prunus.decomposition import EVBMF, Energy, RankTable, rank_table
from prunus.errors import CaptureError, ConfigError, PlanError, TargetError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.wide, self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Conv2d(32, 32, 3, groups=32)
        self.mix, self.head = nn.Conv2d(32, 48, 1), nn.Linear(48, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.body(self.stem(x).relu())).relu()
        return self.head(self.mix(self.depthwise(x)).relu().mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
DATA = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)).abs() for i in range(1, 5)]


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "spatial_svd", ("tucker", "svd")])
def test_a_target_is_met_and_errors_are_as_predicted(net: nn.Module, method: str) -> None:
    before = copy.deepcopy(net.state_dict())
    result = prunus.decompose(net, X, method=method, target=prunus.Target(macs=0.75), data=DATA)
    report = result.report
    assert 0.6 < report.after.macs / report.before.macs <= 0.75
    assert report.after.params == sum(p.numel() for p in result.model.parameters())
    done = [layer for layer in report.replaced if layer.reason is None]
    assert done
    for layer in done:
        assert layer.predicted_error == pytest.approx(layer.measured_error, rel=0.05)
        assert layer.params_after < layer.params_before and layer.macs_after < layer.macs_before
    assert sum(x.macs_before - x.macs_after for x in done) == report.before.macs - report.after.macs
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(module._forward_hooks for module in net.modules())
    assert str(report) and json.loads(report.to_json())


def test_data_makes_less_error(net: nn.Module) -> None:
    ranks = {"wide": [6, 6], "body.0": [8, 12]}
    errors = []
    for data in (None, DATA):
        result = prunus.decompose(net, X, method="tucker", ranks=ranks, data=data)
        with torch.no_grad():
            errors.append(sum(float((result.model(x) - net(x)).square().sum()) for x in DATA))
    assert errors[1] < 0.8 * errors[0]


def test_replaced_layers_are_plain_trainable_and_loadable(net: nn.Module) -> None:
    net.stem.weight.requires_grad_(False)
    result = prunus.decompose(
        net, X, method=("tucker", "svd"), ranks={"stem": [2, 6], "body.0": [8, 8], "head": 9}
    )
    model = result.model
    assert type(model) is Net and type(model.stem) is nn.Sequential
    assert [type(part) for part in model.body[0]] == [nn.Conv2d] * 3
    assert [type(part) for part in model.head] == [nn.Linear] * 2
    assert not model.stem[0].weight.requires_grad and model.head[0].weight.requires_grad
    assert "body.0.1.weight" in model.state_dict() and "head.1.bias" in model.state_dict()
    torch.manual_seed(5)
    fresh = prunus.apply(Net().eval(), prunus.Plan.from_json(result.plan.to_json())).model
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(X), model(X), rtol=0, atol=0)
    model.train()
    model(X).square().sum().backward()
    assert model.body[0][1].weight.grad is not None
    exported = torch.export.export(model.eval(), (X,))
    torch.testing.assert_close(exported.module()(X), model(X))


def test_saved_and_loaded(net: nn.Module, tmp_path) -> None:
    result = prunus.decompose(net, X, method="svd", target=prunus.Target(params=0.7), data=DATA)
    result.save(tmp_path / "out")
    loaded = prunus.load(tmp_path / "out")
    torch.testing.assert_close(loaded(X), result.model(X))
    assert set(loaded.state_dict()) == set(result.model.state_dict())


@pytest.mark.slow
def test_onnx(net: nn.Module, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = prunus.decompose(net, X, method="tucker", target=prunus.Target(macs=0.8))
    result.save(tmp_path / "out", onnx=True)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_plans_compose(net: nn.Module) -> None:
    pruned = prunus.compress(net, X, target=prunus.Target(channels=0.75))
    both = prunus.decompose(pruned, method=("tucker", "svd"), target=prunus.Target(macs=0.7), data=DATA)
    assert both.plan.groups and both.plan.then is not None and both.plan.then.layers
    assert both.report.before.macs > pruned.report.after.macs > both.report.after.macs
    assert both.report.groups and both.report.replaced
    again = prunus.apply(net, prunus.Plan.from_json(both.plan.to_json()), data=DATA, recover=False)
    torch.testing.assert_close(again.model(X), both.model(X))
    assert again.plan == both.plan

    first = prunus.decompose(net, X, method="svd", ranks={"mix": 8, "body.0": 12})
    second = prunus.compress(first.model, X, target=prunus.Target(channels=0.75))
    plan = first.plan.followed_by(second.plan)
    again = prunus.apply(net, prunus.Plan.from_json(plan.to_json()))
    torch.testing.assert_close(again.model(X), second.model(X))
    assert again.report.before.macs == first.report.before.macs


def test_rules(net: nn.Module) -> None:
    result = prunus.decompose(net, X, ranks=Energy(0.5))
    assert result.plan.layers and result.plan.options == {"ranks": "energy(0.5)"}
    with torch.no_grad():
        for layer in (net.head, net.mix):
            u, s, vh = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
            s[5:] *= 1e-3
            layer.weight.copy_(((u * s) @ vh).reshape(layer.weight.shape))
    result = prunus.decompose(net, X, ranks=EVBMF(), hold=["body"])
    ranks = {entry.path: entry.ranks for entry in result.plan.layers}
    assert ranks["head"] == ranks["mix"] == (5,)
    reasons = {layer.path: layer.reason for layer in result.report.replaced}
    assert "is held" in reasons["body.0"]
    wide = prunus.decompose(net, X, ranks=EVBMF(), multiple_of=8).plan.layers
    assert {entry.path: entry.ranks for entry in wide}["head"] == (8,)


def test_what_does_not_pay_is_refused(net: nn.Module) -> None:
    result = prunus.decompose(net, X, ranks={"head": 40, "mix": 5})
    reasons = {layer.path: layer.reason for layer in result.report.replaced}
    assert "would not pay" in reasons["head"] and reasons["mix"] is None
    assert "1 refused" in str(result.report)
    assert [entry.path for entry in result.plan.layers] == ["mix"]


def test_slow_replacements_are_refused(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    import prunus.decomposition.run as run

    monkeypatch.setattr(
        run,
        "slower",
        lambda site, chain: "would be no faster: 1 ms before, 2 ms after" if site.path == "mix" else None,
    )
    result = prunus.decompose(net, X, ranks={"head": 4, "mix": 5}, measure_latency=True)
    assert [entry.path for entry in result.plan.layers] == ["head"]
    assert result.report.before.latency_ms and result.report.after.latency_ms


def test_the_table(net: nn.Module, tmp_path) -> None:
    table = rank_table(net, X, method=("tucker", "svd"), data=DATA)
    assert [row.name for row in table] == ["stem", "body.0", "wide", "mix", "head"]
    assert (table["wide"].inputs, table["wide"].outputs, table["wide"].full) == (32, 32, (16, 16))
    for row in table:
        row.ranks = None
    table["mix"].ranks = 7
    table.to_csv(tmp_path / "ranks.csv")
    again = RankTable.from_csv(tmp_path / "ranks.csv")
    result = prunus.decompose(net, X, method=("tucker", "svd"), table=again)
    assert [(entry.path, entry.ranks) for entry in result.plan.layers] == [("mix", (7,))]
    assert "mix" in str(table)


class Reads(nn.Module):
    """Its code reads an attribute of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).to(self.two.weight.dtype))


def test_layers_whose_attributes_are_read_are_left_alone() -> None:
    net = Reads().eval()
    result = prunus.decompose(net, torch.randn(2, 16), ranks=Energy(0.3))
    reasons = {layer.path: layer.reason for layer in result.report.replaced}
    assert reasons["one"] is None and "weight at test_decompose.py" in reasons["two"]
    assert type(net.two) is nn.Linear


def test_attention_and_transformer_layers_are_safe() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    net = nn.Sequential(nn.Linear(32, 32), layer, nn.Linear(32, 32)).eval()
    x = torch.randn(2, 5, 32)
    result = prunus.decompose(net, x, ranks=Energy(0.5))
    assert {"0", "2"} <= {entry.path for entry in result.plan.layers}
    assert type(result.model[1].self_attn) is nn.MultiheadAttention
    with torch.no_grad():
        assert result.model(x).shape == x.shape


def test_the_whole_model_may_be_one_layer() -> None:
    result = prunus.decompose(nn.Linear(32, 32), torch.randn(2, 32), ranks={"": 4})
    assert type(result.model) is nn.Sequential
    program = torch.export.export(nn.Sequential(nn.Linear(32, 32)).eval(), (torch.randn(2, 32),))
    assert len(prunus.decompose(program, ranks={"0": 4}).plan.layers) == 1


BAD = [
    ({"ranks": {"mix": 0}}, ConfigError, "1 to 32"),
    ({"ranks": {"mix": 33, "head": 41}}, ConfigError, "head"),
    ({"ranks": {"mix": [3, 4]}}, ConfigError, "takes 1 rank"),
    ({"ranks": {"mix": 2.5}}, ConfigError, "whole number"),
    ({"ranks": {"wide": 4}, "method": "tucker"}, ConfigError, "2 ranks (in, out)"),
    ({"ranks": {"depthwise": 1}, "method": "svd"}, ConfigError, "one channel per group"),
    ({"ranks": {"body.1": 1}}, ConfigError, "no layer 'body.1'"),
    ({"ranks": {"mixx": 1}}, ConfigError, "similar: mix"),
    ({"ranks": {}}, ConfigError, "no layer is chosen"),
    ({"ranks": EVBMF(), "method": "cp"}, ConfigError, "says nothing about the rank of cp"),
    ({"ranks": EVBMF(), "hold": "*"}, ConfigError, "no layer can be decomposed"),
    ({"ranks": EVBMF(), "hold": "nowhere"}, ConfigError, "nowhere"),
    ({"ranks": EVBMF(), "target": prunus.Target(macs=0.5)}, ConfigError, "exactly one"),
    ({}, ConfigError, "exactly one"),
    ({"target": prunus.Target(channels=0.5)}, ConfigError, "keeps all channels"),
    ({"target": prunus.Target(macs=0.01)}, TargetError, "no ranks reach"),
    ({"target": prunus.Target(params=0.001)}, TargetError, "no ranks reach"),
    ({"target": 0.5}, ConfigError, "prunus.Target"),
    ({"target": prunus.Target(macs=0.5), "method": "qr"}, ConfigError, "qr"),
    ({"target": prunus.Target(macs=0.5), "multiple_of": 0}, ConfigError, "multiple_of"),
    ({"target": prunus.Target(macs=0.5), "floor": 2.0}, ConfigError, "floor"),
    ({"target": prunus.Target(macs=0.5), "data": []}, ConfigError, "empty"),
    ({"target": prunus.Target(macs=0.5), "data": [torch.randn(2, 4, 12, 12)]}, ConfigError, "shape"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_refused_with_the_place(net: nn.Module, options, error, words: str) -> None:
    with pytest.raises(error) as raised:
        prunus.decompose(net, X, **options)
    assert words in str(raised.value)


def test_weights_that_are_not_numbers(net: nn.Module) -> None:
    with torch.no_grad():
        net.mix.weight[0, 0] = float("nan")
    with pytest.raises(CaptureError, match=r"mix\.weight"):
        prunus.decompose(net, X, ranks=EVBMF())


def test_dead_and_constant_layers(net: nn.Module) -> None:
    with torch.no_grad():
        net.mix.weight.zero_()
        net.wide.weight.fill_(0.5)
        net.head.weight[:, 3:] = 0
        net.body[0].weight[4:] = 0
    for data in (None, DATA):
        result = prunus.decompose(net, X, method=("tucker", "svd"), target=prunus.Target(macs=0.6), data=data)
        with torch.no_grad():
            assert torch.isfinite(result.model(X)).all()
            torch.testing.assert_close(result.model(X), net(X), rtol=1e-3, atol=1e-3)
        reasons = {layer.path: layer.reason for layer in result.report.replaced}
        assert reasons["mix"] == "has a weight of zeros"


def test_plans_for_other_models_are_refused(net: nn.Module) -> None:
    plan = prunus.decompose(net, X, ranks={"mix": 4}).plan
    with pytest.raises(PlanError, match="another architecture"):
        prunus.apply(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), plan, example_inputs=X)
    for change, words in (
        ({"ranks": [40]}, "do not fit"),
        ({"path": "nowhere"}, "no layer"),
        ({"shape": [1]}, "weight of"),
    ):
        content = json.loads(plan.to_json())
        content["layers"][0] |= change
        with pytest.raises(PlanError, match=words):
            prunus.apply(net, prunus.Plan.from_json(json.dumps(content)))
    content["layers"][0]["ranks"] = [0]
    with pytest.raises(PlanError, match="whole numbers"):
        prunus.Plan.from_json(json.dumps(content))
