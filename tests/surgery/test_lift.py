"""A lifted network must be indistinguishable from the model that it was captured from."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunus.capture import capture
from prunus.capture.shapes import expect_shapes
from prunus.errors import CaptureError
from prunus.inputs import Inputs
from prunus.surgery.lift import lift


def lifted(model: nn.Module, *args: Any, **kwargs: Any) -> fx.GraphModule:
    return lift(capture(model, Inputs(args, kwargs)))


def image(channels: int = 4, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def behind(norm: nn.Module) -> nn.Module:
    """A norm without tensors of its own: only a layer before it fixes how many channels it has."""
    return nn.Sequential(nn.Conv2d(4, 4, 1), norm)


def signal(channels: int = 4, length: int = 8) -> Tensor:
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(1))


def volume(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters that are not the initial ones, so that ignoring them shows."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.1, 0.5, generator=generator)
    return model


# layers of each family -> the input; every layer must come back as the same class with the same settings
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), signal),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), bias=False), image),
    "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), image),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), image),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2), image),
    "conv2d valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), image),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, padding=1), volume),
    "conv transpose 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), signal),
    "conv transpose 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2, bias=False),
        image,
    ),
    "conv transpose 3d": (lambda: nn.ConvTranspose3d(4, 2, 2, stride=2), volume),
    "linear": (lambda: nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 5, bias=False)), image),
    "bilinear": (lambda: Twice(nn.Bilinear(8, 8, 3)), image),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4, eps=1e-3, momentum=0.3), signal),
    "batch norm 1d of matrix": (lambda: nn.BatchNorm1d(4), lambda: torch.randn(3, 4)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4), image),
    "batch norm 3d": (lambda: nn.BatchNorm3d(4), volume),
    "batch norm without affine": (lambda: nn.BatchNorm2d(4, affine=False), image),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), image),
    "batch norm with neither": (
        lambda: behind(nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
        image,
    ),
    "batch norm cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), image),
    "layer norm": (lambda: nn.LayerNorm((8, 8), eps=1e-3), image),
    "layer norm without bias": (lambda: nn.LayerNorm(8, bias=False), image),
    "layer norm without affine": (lambda: nn.LayerNorm(8, elementwise_affine=False), image),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=1e-3), image),
    "group norm without affine": (lambda: behind(nn.GroupNorm(2, 4, affine=False)), image),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(4, affine=True), signal),
    "instance norm 2d": (lambda: behind(nn.InstanceNorm2d(4)), image),
    "instance norm 2d tracked": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), image),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(4, track_running_stats=True), volume),
    "rms norm": (lambda: nn.RMSNorm(8, eps=1e-5), image),
    "rms norm without affine": (lambda: nn.RMSNorm(8, elementwise_affine=False), image),
    "embedding": (lambda: nn.Embedding(10, 4), lambda: torch.randint(0, 10, (2, 5))),
    "embedding padded": (lambda: nn.Embedding(10, 4, padding_idx=3), lambda: torch.randint(0, 10, (2, 5))),
    "prelu": (lambda: nn.PReLU(4, init=0.3), image),
    "dropouts": (
        lambda: nn.Sequential(nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.1)),
        image,
    ),
    "dropout in place": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.3, inplace=True)), image),
    "dropout 1d": (lambda: nn.Dropout1d(0.3), signal),
    "dropout 2d": (lambda: nn.Dropout2d(0.3), image),
    "dropout 3d": (lambda: nn.Dropout3d(0.3), volume),
    "rrelu": (lambda: nn.RReLU(0.1, 0.4), image),
    "relus": (
        lambda: nn.Sequential(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.CELU(1.3), nn.SELU()),
        image,
    ),
    "gelus": (
        lambda: nn.Sequential(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(2.0, 10.0)),
        image,
    ),
    "hard": (
        lambda: nn.Sequential(nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-2.0, 1.5), nn.Hardshrink(0.1)),
        image,
    ),
    "smooth": (
        lambda: nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid(), nn.Softshrink(0.2), nn.GLU(1)),
        image,
    ),
    "softmax": (lambda: nn.Sequential(nn.Softmax(1), nn.LogSoftmax(-1), nn.Threshold(-1.0, 0.5)), image),
    "in place": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.ReLU(True), nn.Conv2d(4, 4, 1), nn.Hardswish(True), nn.ELU(inplace=True)
        ),
        image,
    ),
    "max pools": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1, ceil_mode=True)), image),
    "pools 1d": (lambda: nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3)), signal),
    "pools 2d": (
        lambda: nn.Sequential(nn.AvgPool2d((2, 1), count_include_pad=False), nn.AdaptiveAvgPool2d((3, None))),
        image,
    ),
    "pools 3d": (lambda: nn.Sequential(nn.MaxPool3d(2), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1)), volume),
}


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


def same_layer(a: nn.Module, b: nn.Module) -> bool:
    """Same class and settings; a pool's settings may be written as a number or as a tuple of it."""
    if type(a) is not type(b):
        return False
    settings = [
        {
            k: v
            for k, v in vars(m).items()
            if not k.startswith("_") and k not in ("padding_mode", "output_size", "init")
        }
        for m in (a, b)
    ]
    if "pool" in type(a).__module__ or "pool" in type(a).__name__.lower():
        flat = [{k: list(v) if isinstance(v, tuple) else [v] for k, v in s.items()} for s in settings]
        return all(set(flat[0][k]) == set(flat[1].get(k, ())) for k in flat[0])
    return settings[0] == settings[1]


@pytest.mark.parametrize("family", LAYERS)
def test_every_layer_comes_back_as_itself(family: str) -> None:
    build, example = LAYERS[family]
    model = trained(nn.Sequential(build())).eval()
    x = example()
    result = lifted(model, x)
    layers = {path: m for path, m in model.named_modules() if not list(m.children())}
    for path, layer in layers.items():
        assert same_layer(layer, result.get_submodule(path)), (layer, result.get_submodule(path))
    calls = [n for n in result.graph.nodes if n.target is not expect_shapes]
    assert {n.op for n in calls} == {"placeholder", "call_module", "output"}
    assert_same_behavior(model, result, x)


def assert_same_behavior(model: nn.Module, result: nn.Module, *args: Any) -> None:
    """Same state, and equal outputs, gradients and statistics in evaluation and in training."""
    assert list(result.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    for training in (False, True):
        models = [copy.deepcopy(m).train(training) for m in (model, result)]
        outputs = []
        for m in models:
            torch.manual_seed(0)
            outputs.append(m(*args))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)
        if outputs[0].requires_grad:
            for output in outputs:
                (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        for (name, a), (_, b) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
            torch.testing.assert_close(
                b.grad, a.grad, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )
        for (name, a), (_, b) in zip(models[0].named_buffers(), models[1].named_buffers(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_statistics_really_move_in_training() -> None:
    """Guards the comparison above: it would also hold if neither side learned anything."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5))
    result = lifted(model, image()).train()
    before = result(image())
    assert result.get_buffer("0.num_batches_tracked") == 1
    assert result.get_buffer("0.running_mean").abs().max() > 0
    assert (before == 0).float().mean() > 0.3
    assert not torch.equal(before, result(image()))


# --- sharing


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def calls(result: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in result.graph.nodes if node.op == "call_module"]


def test_a_module_called_twice_stays_one_module() -> None:
    result = lifted(Shared(), image())
    assert calls(result) == ["conv", "conv"]


class OtherSettings(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return (
            self.conv(x)
            + F.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)
            + self.conv.weight.sum()
        )


def test_a_weight_used_with_other_settings_is_read_by_the_other_call() -> None:
    model = OtherSettings()
    result = lifted(model, image())
    assert calls(result) == ["conv"]
    assert_same_behavior(model.eval(), result, image())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.tokens(x)))


def test_tied_weights_stay_one_parameter_under_both_names() -> None:
    model = Tied()
    ids = torch.randint(0, 10, (2, 5))
    result = lifted(model, ids)
    assert calls(result) == ["tokens", "body", "head"]
    assert result.get_parameter("head.weight") is result.get_parameter("tokens.weight")
    assert len(list(result.parameters())) == len(list(model.parameters())) == 3
    assert list(result.state_dict()) == list(model.state_dict())
    copied = copy.deepcopy(result)
    assert copied.get_parameter("head.weight") is copied.get_parameter("tokens.weight")
    assert copied.get_parameter("head.weight") is not result.get_parameter("head.weight")
    assert_same_behavior(model.eval(), result, ids)


class TiedTheOtherWayRound(Tied):
    """The name that comes first belongs to the call that comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self._modules.pop("tokens")


def test_each_call_of_a_tied_weight_finds_its_own_path() -> None:
    model = TiedTheOtherWayRound()
    assert next(iter(model.state_dict())) == "body.weight"
    ids = torch.randint(0, 10, (2, 5))
    result = lifted(model, ids)
    assert calls(result) == ["tokens", "body", "head"]
    assert type(result.get_submodule("tokens")) is nn.Embedding
    assert_same_behavior(model.eval(), result, ids)


class HalfTied(nn.Module):
    """Two layers that share the weight but not the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_layers_with_one_weight_and_two_biases() -> None:
    model = HalfTied()
    result = lifted(model, torch.randn(3, 4))
    assert calls(result) == ["a", "b"]
    assert_same_behavior(model.eval(), result, torch.randn(3, 4))


class SharedModule(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.list = nn.ModuleList([self.a])

    def forward(self, x: Tensor) -> Tensor:
        return self.list[0](self.a(x))


def test_one_module_under_two_names() -> None:
    model = SharedModule()
    result = lifted(model, torch.randn(3, 4))
    assert len(list(result.parameters())) == 2
    assert_same_behavior(model.eval(), result, torch.randn(3, 4))


# --- what has to stay a call of a function


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def test_a_computed_weight_keeps_its_names() -> None:
    model = nn.Sequential(Standardized(4, 6, 3), nn.ReLU())
    result = lifted(model, image())
    assert calls(result) == ["1"]
    assert_same_behavior(model.eval(), result, image())


class BiasElsewhere(nn.Linear):
    """The bias exists but is added by hand: a Linear with a bias would add it twice."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * 2 + self.bias


def test_a_bias_that_the_call_does_not_use_is_not_used() -> None:
    model = trained(nn.Sequential(BiasElsewhere(4, 3)))
    result = lifted(model, torch.randn(2, 4))
    assert calls(result) == []
    assert_same_behavior(model.eval(), result, torch.randn(2, 4))


class LowRank(nn.Linear):
    """A layer with parameters of its own beside those of its class."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.down = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(x @ self.down.T)


def test_a_layer_with_further_parameters() -> None:
    model = trained(nn.Sequential(LowRank()))
    result = lifted(model, torch.randn(2, 4))
    assert type(result.get_submodule("0")) is nn.Linear
    assert_same_behavior(model.eval(), result, torch.randn(2, 4))


class FrozenNorm(nn.Module):
    """Batch norm whose affine values are buffers, and which never learns statistics."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.2, "running_mean": 0.3, "running_var": 2.0}.items():
            self.register_buffer(name, torch.full((4,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)  # type: ignore[arg-type]


class AlwaysBatchStatistics(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.2)


@pytest.mark.parametrize("norm", [FrozenNorm, lambda: AlwaysBatchStatistics(4)])
def test_norms_whose_mode_is_fixed(norm: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(norm())
    result = lifted(model, image())
    assert calls(result) == []
    assert_same_behavior(model.eval(), result, image())


def test_batch_norm_that_does_not_count() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].num_batches_tracked = None  # type: ignore[assignment]
    result = lifted(model, image())
    assert result.get_submodule("0").num_batches_tracked is None
    assert_same_behavior(model.eval(), result, image())


class FunctionalDropout(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.block = nn.Module()
        self.fc = nn.Linear(4, 64)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.fc(x), 0.5, training=self.training or self.always)
        return F.dropout(x, 0.25, training=self.training or self.always)


def test_functional_dropout_follows_the_mode() -> None:
    model = FunctionalDropout(always=False)
    result = lifted(model, torch.randn(2, 4))
    assert calls(result) == ["fc", "dropout", "dropout_1"]
    assert [result.get_submodule(name).p for name in ("dropout", "dropout_1")] == [0.5, 0.25]
    assert_same_behavior(model.eval(), result, torch.randn(2, 4))


def test_dropout_that_is_always_on_stays_on() -> None:
    result = lifted(FunctionalDropout(always=True), torch.randn(2, 4)).eval()
    assert calls(result) == ["fc"]
    assert (result(torch.randn(2, 4)) == 0).any()


class HardSigmoidGate(nn.Module):
    """Several calls in one module: none of them is the module."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3) / 6


class TwoActivations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(F.relu(x))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class DropoutName(nn.Module):
    """A functional dropout where the model has a parameter that takes the obvious name."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * self.dropout, 0.5, self.training)


def test_paths_of_modules_without_parameters() -> None:
    assert calls(lifted(nn.Sequential(HardSigmoidGate(), Swish(), TwoActivations()), image())) == ["1"]
    assert calls(lifted(DropoutName(), torch.randn(2, 4))) == ["dropout_1"]


# --- attention


class OwnAttention(nn.Module):
    """Grouped heads, a mask, a scale, and a dropout probability that only training passes on."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.dropout = dropout
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).tril())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        q, k, v = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            q, k, v, self.mask, dropout_p=dropout, scale=0.3, enable_gqa=True
        )


def test_dropout_inside_fused_attention_follows_the_mode() -> None:
    model = nn.Sequential(OwnAttention(0.4), nn.Flatten(1))
    x = torch.randn(2, 6, 16)
    random_state = torch.get_rng_state()
    result = lifted(model, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and model[0].calls == 0
    (name,) = (name for name in calls(result) if "attention" in name)
    assert result.get_submodule(name).dropout_p == 0.4
    assert_same_behavior(model.eval(), result, x)
    assert not torch.equal(result.train()(x), result(x))
    assert torch.equal(result.eval()(x), result(x))


def test_attention_without_dropout_stays_a_call() -> None:
    result = lifted(nn.Sequential(OwnAttention(0.0)), torch.randn(2, 6, 16))
    assert calls(result) == ["0.q", "0.k", "0.v"]


class LooksAtValues(OwnAttention):
    """Cannot be run without data in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if self.training and x.sum() > 0 else x)


def test_attention_that_cannot_be_run_without_data_stays_as_in_evaluation() -> None:
    result = lifted(nn.Sequential(LooksAtValues(0.4)), torch.randn(2, 6, 16)).train()
    assert calls(result) == ["0.q", "0.k", "0.v"]


def test_transformer_encoder_trains_like_the_original() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    result = lifted(model, torch.randn(2, 6, 16))
    assert_same_behavior(model.eval(), result, torch.randn(2, 6, 16))


# --- tensors


class Tensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("derived", torch.arange(4.0) + 1, persistent=False)
        self.plain = torch.full((4,), 3.0)
        self.inner = nn.Module()
        self.inner.register_buffer("hidden", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.kept + self.derived + self.plain + self.inner.hidden
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0])


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "copy of a copy": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(m)))),
}


@pytest.mark.parametrize("how", COPIES)
def test_parameters_buffers_and_constants_keep_their_kinds(how: str) -> None:
    model = Tensors().eval()
    x = torch.randn(2, 4)
    original = lifted(model, x)
    result = COPIES[how](original)
    assert how == "itself" or result.graph is not original.graph
    assert [node.name for node in result.graph.nodes] == [node.name for node in original.graph.nodes]
    assert list(result.state_dict()) == list(model.state_dict()) == ["scale", "unused", "kept"]
    assert {n: p.requires_grad for n, p in result.named_parameters()} == {"scale": False, "unused": True}
    assert {"derived", "inner.hidden"} <= {name for name, _ in result.named_buffers()}
    assert not result.training
    torch.testing.assert_close(result(x), model(x), rtol=0, atol=0)
    half = result.to(torch.float64)
    assert {tensor.dtype for tensor in [*half.parameters(), *half.buffers()]} == {torch.float64}


def test_training_the_result_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    small = capture(model, image())
    result = lift(small)
    assert torch.equal(random_state, torch.get_rng_state())
    result.train()
    optimizer = torch.optim.SGD(result.parameters(), 0.5)
    result(image()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(torch.equal(before[name], tensor) for name, tensor in result.state_dict().items())
    fresh = lift(small)  # lifting changes nothing in the capture either
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).to(dtype).eval()
    result = lifted(model, image().to(dtype))
    assert [t.dtype for t in result.state_dict().values()] == [t.dtype for t in model.state_dict().values()]
    torch.testing.assert_close(result(image().to(dtype)), model(image().to(dtype)), rtol=0, atol=0)


def test_a_slice_without_the_flag_trains_if_the_parameter_does() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)
    small = capture(model, torch.randn(2, 4))
    small = small.with_(tensors={name: tensor.detach() for name, tensor in small.tensors.items()})
    flags = {name: parameter.requires_grad for name, parameter in lift(small).named_parameters()}
    assert flags == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": True}


def test_settings_come_from_the_tensors() -> None:
    """Surgery hands on smaller tensors under the names of the original ones."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1))
    small = capture(model, image())
    keep = {
        "0.weight": 0,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "1.running_mean": 0,
        "1.running_var": 0,
        "2.weight": 1,
    }
    tensors = {
        placeholder: tensor.narrow(keep[small.names[placeholder]], 0, 2)
        if small.names[placeholder] in keep
        else tensor
        for placeholder, tensor in small.tensors.items()
    }
    result = lift(small.with_(tensors=tensors))
    assert result.get_submodule("0").out_channels == 2
    assert result.get_submodule("1").num_features == 2
    assert result.get_submodule("2").in_channels == 2
    assert result(image()).shape == (2, 5, 6, 6)


def test_without_the_model_nothing_but_order_is_lost() -> None:
    model = trained(
        nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
        )
    )
    result = lift(capture(model, image()).with_(model=None))
    (argument,) = inspect.signature(result.forward).parameters
    assert argument.startswith("input")
    assert set(result.state_dict()) == set(model.state_dict())
    assert [type(result.get_submodule(str(i))) for i in (0, 1, 2, 4, 5)] == [
        type(model[i]) for i in (0, 1, 2, 4, 5)
    ]
    torch.testing.assert_close(result(image()), model.eval()(image()))


# --- calling


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, dict[str, Tensor]],
        mask: Tensor | None = None,
        *,
        power: int = 1,
        other: Tensor,
    ) -> dict[str, Any]:
        y = self.fc(x) ** power + pair[0] + pair[1]["z"]
        return {"y": y if mask is None else y * mask, "rest": [other * 2, (x, None)], "power": power}


def test_calls_and_outputs_have_the_structure_of_the_original() -> None:
    model = Signature().eval()
    x, a, z, other = (torch.randn(2, 4) for _ in range(4))
    result = lifted(model, x, (a, {"z": z}), None, power=2, other=other)
    expected = model(x, (a, {"z": z}), None, power=2, other=other)
    for outputs in (
        result(x, (a, {"z": z}), None, power=2, other=other),
        result(x, (a, {"z": z}), None, other=other, power=2),
        result(x=x, other=other, mask=None, power=2, pair=(a, {"z": z})),
    ):
        assert list(outputs) == ["y", "rest", "power"]
        assert isinstance(outputs["rest"], list) and isinstance(outputs["rest"][1], tuple)
        assert outputs["rest"][1][1] is None and outputs["power"] == 2
        torch.testing.assert_close(outputs["y"], expected["y"], rtol=0, atol=0)
        torch.testing.assert_close(outputs["rest"][0], expected["rest"][0], rtol=0, atol=0)


@pytest.mark.parametrize("how", COPIES)
def test_another_constant_is_refused_and_not_ignored(how: str) -> None:
    x, other = torch.randn(2, 4), torch.randn(2, 4)
    pair = (x, {"z": x})
    result = COPIES[how](lifted(Signature(), x, pair, None, power=2, other=other))
    with pytest.raises(CaptureError, match=r"power is 3, but the model was captured with power=2"):
        result(x, pair, None, power=3, other=other)
    with pytest.raises(CaptureError, match=r"mask is a tensor of shape \(2, 4\), but .* mask=None"):
        result(x, pair, x, power=2, other=other)


class KeywordsOnly(nn.Module):
    def forward(self, ids: Tensor, scale: Tensor | None = None) -> tuple[Tensor, ...]:
        return (ids * 2, ids if scale is None else ids * scale)


def test_keywords_alone() -> None:
    ids, scale = torch.randn(2, 4), torch.randn(2, 4)
    result = lifted(KeywordsOnly(), scale=scale, ids=ids)
    for outputs in (result(ids=ids, scale=scale), result(scale=scale, ids=ids)):
        assert isinstance(outputs, tuple)
        torch.testing.assert_close(outputs, (ids * 2, ids * scale))


# --- in-place operators


class SkipsInEvaluation(nn.Module):
    """Between relu, whose result autograd keeps, and the addition there is a layer that evaluation skips."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = y * torch.rand(()) if self.training else y
        y += self.b(x)
        return y.relu_()


class WritesBetween(nn.Module):
    """The value written to is read before and after, under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        before = self.b(y) if not self.training else self.b(y.clone())
        y.mul_(2.0)
        torch.relu_(y)
        return before + y


class ChainOfWrites(nn.Module):
    """Several writes to one memory, of which the last would destroy what autograd keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).add_(1.0).sigmoid_()
        y = y * 1 if self.training else y
        return y.mul_(3.0) + self.b(x)


class SecondName(nn.Module):
    """One memory under two names, both read after the last write: no operator may get a memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y.clamp_(max=0.5)
        w = y.view(-1)
        y.relu_()
        return y + z * 2 + w.view(x.shape[0], 4) + self.b(x)


def test_memory_with_two_names_is_left_alone() -> None:
    model = SecondName().eval()
    x = torch.randn(3, 4)
    torch.testing.assert_close(lifted(model, x)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("net", [SkipsInEvaluation, WritesBetween, ChainOfWrites])
def test_in_place_operators_that_only_evaluation_allows(net: Callable[[], nn.Module]) -> None:
    model = net().eval()
    x = torch.randn(3, 4)
    result = lifted(model, x)
    torch.testing.assert_close(result(x), model(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="inplace operation"):
        model(x).sum().backward()
    result.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in result.parameters())


class SlicesAndBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y = self.fc(x)
        y[:, 0] = 0
        y[:, 1:3].add_(self.count)
        return y


def test_writes_through_views_and_to_buffers_stay() -> None:
    model = SlicesAndBuffers().eval()
    result = lifted(model, torch.randn(2, 4))
    assert result.get_buffer("count") == 0
    assert_same_behavior(model, result, torch.randn(2, 4))
    result(torch.randn(2, 4))
    assert result.get_buffer("count") == 1


class Clipped(nn.Linear):
    """Keeps its weight in bounds whenever it is called, and its bias through a view."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = self.weight.clamp_(-0.2, 0.2)
            self.bias[1:].clamp_(-0.2, 0.2)
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(nn.Embedding(10, 4, max_norm=0.5), nn.Linear(4, 3)), torch.randint(0, 10, (2, 5))),
        (nn.Sequential(Clipped(4, 3)), torch.randn(2, 4)),
    ],
)
def test_a_weight_written_to_without_gradient_trains(model: nn.Module, example: Tensor) -> None:
    result = lifted(trained(model).eval(), example)
    result(example)
    assert not torch.equal(result.get_parameter("0.weight"), model.get_parameter("0.weight"))
    assert_same_behavior(model, lifted(model, example), example)
    model(example)
    torch.testing.assert_close(result.get_parameter("0.weight"), model.get_parameter("0.weight"))


# --- devices


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.table = nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        mask = torch.ones(x.shape[1], x.shape[1], device=x.device, dtype=torch.bool).tril()
        return self.fc(x) + self.table(positions) + mask.sum() + torch.zeros(4, device=x.device)


def test_created_tensors_follow_the_module() -> None:
    x = torch.randn(2, 5, 4)
    model = Positions().eval()
    result = lifted(model, x)
    torch.testing.assert_close(result(x), model(x))
    assert not any(
        isinstance(v, torch.device) for n in result.graph.nodes for v in (*n.args, *n.kwargs.values())
    )
    moved = copy.deepcopy(result).to("meta")
    assert moved(x.to("meta")).device.type == "meta"
    assert result(x).device.type == "cpu"
    torch.export.export(result, (x,))


# --- exporting again


@pytest.mark.parametrize(
    "family", ["conv2d same", "batch norm 2d", "in place", "conv transpose 2d", "layer norm"]
)
def test_exports_again_with_a_dynamic_batch(family: str) -> None:
    build, example = LAYERS[family]
    result = lifted(trained(nn.Sequential(build())), example())
    again = capture(result, example())
    assert again.batch == 2
    twice = lift(again)
    assert list(twice.state_dict()) == list(result.state_dict())
    x = torch.cat([example(), example()[:1]])
    torch.testing.assert_close(twice(x), result(x), rtol=0, atol=0)


def test_onnx(tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = trained(
        nn.Sequential(
            nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(True),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(216, 3),
        )
    )
    result = lifted(model, image())
    torch.onnx.export(result, (image(),), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model.eval()(image()), rtol=1e-4, atol=1e-5)


def test_compiles_without_a_break() -> None:
    model = Signature().eval()
    x, z, other = (torch.randn(2, 4) for _ in range(3))
    result = lifted(model, x, (x, {"z": z}), None, power=2, other=other)
    compiled = torch.compile(result, backend="eager", fullgraph=True)
    outputs = compiled(x, (x, {"z": z}), None, power=2, other=other)
    torch.testing.assert_close(outputs["y"], model(x, (x, {"z": z}), None, power=2, other=other)["y"])


# --- a whole network


def test_resnet18() -> None:
    models = pytest.importorskip("torchvision.models")
    model = trained_resnet(models.resnet18(weights=None)).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    result = lifted(model, x)
    assert list(result.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(result(x), model(x), rtol=1e-6, atol=1e-6)
    layers = {path: layer for path, layer in model.named_modules() if not list(layer.children())}
    assert all(same_layer(layer, result.get_submodule(path)) for path, layer in layers.items())
    functions = {str(node.target) for node in result.graph.nodes if node.op == "call_function"}
    assert functions - {str(expect_shapes)} == {"aten.add_.Tensor", "aten.flatten.using_ints"}
    assert_same_behavior(model, result, x)
    result.load_state_dict(models.resnet18(weights=None).state_dict())
    again = lift(capture(copy.deepcopy(result), x))
    torch.testing.assert_close(again(x[:1]), result(x[:1]), rtol=1e-6, atol=1e-6)


def trained_resnet(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model
