"""Arguments are understood or refused before a model is captured, all at once; data come in many forms."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import prunus
from prunus.errors import CaptureError, ConfigError, PlanError, PrunusError, TargetError
from prunus.evidence.batches import require_fitting

HALF = prunus.Target(channels=0.5)
X, Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)).eval()


class Named(nn.Module):
    """Two arguments with names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(left) + self.b(right)))


def compressed(**options: Any) -> prunus.Result:
    return prunus.compress(net(), X[:4], **{"target": HALF, **options})


def kept(result: prunus.Result) -> dict[str, int]:
    return {group.name: len(group.keep) for group in result.plan.groups}


# --- arguments


def test_a_deep_network_costs_no_time_before_its_arguments_are_right():
    deep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(1000)))
    start = time.perf_counter()
    with pytest.raises(
        ConfigError, match=r"target=0.5: say what 0.5 is of: target=prunus.Target\(macs=0.5\)"
    ):
        prunus.compress(deep, X[:4], target=0.5)  # type: ignore[arg-type]
    assert time.perf_counter() - start < 1


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path):
    wrong: dict[str, Any] = {
        "target": {"macs": 0.5},
        "hold": [0],
        "floors": 2.0,
        "multiple_of": 0,
        "seed": "a",
        "data": 5,
        "loss": 4,
        "recover": 3,
        "verify": "no",
        "evaluate": 1,
        "progress": 1,
        "outputs": 3,
        "checkpoint": 7,
        "allocation": "even",
    }
    with pytest.raises(ConfigError) as caught:
        compressed(**wrong)
    for name in wrong:
        # the allocation needs a target that is understood
        assert name in str(caught.value).replace("floor ", "floors ") or name == "allocation"


class Counting:
    """Data, and a function to evaluate with, that count how often they are asked."""

    def __init__(self) -> None:
        self.read = self.called = 0

    def __iter__(self) -> Iterator[Tensor]:
        for start in (0, 32):
            self.read += 1
            yield X[start : start + 32]

    def evaluate(self, model: nn.Module) -> float:
        self.called += 1
        return 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "l3"},
        {"target": None},
        {"allocation": "even"},
        {"floors": 2.0},
        {"floors": {"decoder": 0.5}},
        {"multiple_of": 0},
        {"hold": ["decoder"]},
        {"hold": [nn.Conv2d]},
        {"hold": nn.Linear(2, 2)},
        {"target": prunus.Target(macs=1e-9)},
        {"target": prunus.Target(macs=0.5), "multiple_of": 64},
        {"options": 3},
        {"ratio": 0.5},
        {"target": None, "ratio": {"decoder": 0.5}},
        {"target": None, "ratio": {"0": 1.5}},
        {"loss": nn.CrossEntropyLoss},
        {"recover": "retrain"},
        {"outputs": {"aux": "drop"}},
    ],
    ids=str,
)
def test_nothing_is_run_for_what_cannot_be_done(wrong: dict[str, Any], tmp_path: Path):
    counting = Counting()
    folder = tmp_path / "noted"
    with pytest.raises((ConfigError, TargetError)):
        compressed(
            data=counting,
            evaluate=counting.evaluate,
            checkpoint=folder,
            **wrong,
        )
    assert counting.read == counting.called == 0 and not folder.exists()


def test_data_of_another_shape_are_found_before_evaluate_is_called(tmp_path: Path):
    counting = Counting()
    for data in ([torch.randn(4, 9)], lambda: iter([torch.randn(4, 8, 2)]), torch.randn(4, 8).long()):
        with pytest.raises(ConfigError, match="batch 0 of data"):
            compressed(data=data, evaluate=counting.evaluate, checkpoint=tmp_path / "noted")
    assert counting.called == 0 and not (tmp_path / "noted").exists()


def test_a_plan_may_be_a_path_and_of_a_later_round(tmp_path: Path):
    first = compressed()
    assert kept(prunus.apply(net(), first.save(tmp_path / "small"))) == {"0": 8, "2": 8}  # type: ignore[arg-type]
    first.plan.save(tmp_path / "plan.json")
    assert kept(prunus.apply(net(), str(tmp_path / "plan.json"))) == {"0": 8, "2": 8}
    second = prunus.compress(first.model, X[:4], target=HALF)
    with pytest.raises(PlanError, match=r"first.followed_by\(second\)"):
        prunus.apply(net(), second.plan)
    for wrong in (None, 3, b"plan.json"):
        with pytest.raises(PlanError, match="pass a prunus"):
            prunus.apply(net(), wrong)  # type: ignore[arg-type]


RAW: dict[str, Callable[[], Any]] = {
    "Inputs": lambda: prunus.Inputs("a", "b"),  # type: ignore[arg-type]
    "group": lambda: prunus.analyze(net(), X[:4]).group(5),  # type: ignore[arg-type]
    "why": lambda: prunus.analyze(net(), X[:4]).why(None),  # type: ignore[arg-type]
    "from_json": lambda: prunus.Plan.from_json(None),  # type: ignore[arg-type]
    "empty batch": lambda: prunus.compress(net(), X[:0], target=HALF),
    "whole numbers": lambda: prunus.analyze(net(), X[:4].long()),
    "double": lambda: prunus.analyze(net(), X[:4].double()),
    "complex scores": lambda: compressed(method=lambda view: torch.ones(view.size, dtype=torch.complex64)),
    "a name": lambda: prunus.register_criterion(5),  # type: ignore[arg-type]
    "checkpoint without data": lambda: compressed(checkpoint="noted"),
    "plan of a model": lambda: prunus.plan(net(), target=HALF),  # type: ignore[arg-type]
    "plan of nothing": lambda: prunus.plan(None, target=HALF),  # type: ignore[arg-type]
    "load": lambda: prunus.Plan.load(None),  # type: ignore[arg-type]
    "recalibrate a number": lambda: prunus.recalibrate(5, [X]),  # type: ignore[arg-type]
    "recalibrate on a number": lambda: prunus.recalibrate(net(), 5),  # type: ignore[arg-type]
    "no data": lambda: compressed(data=[]),
    "decompose": lambda: prunus.decompose(net(), X[:4], target=0.5),  # type: ignore[arg-type]
    "decompose, hold": lambda: prunus.decompose(net(), X[:4], ranks={"0": 2}, hold=[3]),
}


@pytest.mark.parametrize("name", RAW)
def test_no_bare_exception(name: str):
    with pytest.raises(PrunusError):
        RAW[name]()


def test_double_inputs_of_a_double_model_are_fine():
    result = prunus.compress(net().double(), X[:4].double(), target=HALF)
    assert result.model(X[:4].double()).dtype == torch.float64


# --- layers by modules, classes and globs


def test_hold_takes_modules_classes_and_globs():
    model = net()
    for hold in (model[0], [model[0]], "0", ["[0]"]):
        assert kept(prunus.compress(model, X[:4], target=HALF, hold=hold)) == {"2": 8}
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 12), nn.ReLU(), nn.Linear(12, 2)
    )
    x = torch.randn(2, 3, 8, 8)
    assert kept(prunus.compress(conv, x, target=HALF, hold=nn.Conv2d)) == {"3": 6}
    with pytest.raises(ConfigError, match="there is no Conv1d in the model"):
        prunus.compress(conv, x, target=HALF, hold=[nn.Conv1d])
    chain = prunus.decompose(model, X[:4], ranks=prunus_energy(), hold=[model[2]])
    assert not any(layer.path == "2" for layer in chain.plan.layers)


def prunus_energy() -> Any:
    from prunus.decomposition import Energy

    return Energy(0.5)


def test_ratio_takes_modules_classes_and_globs():
    model = net()

    def by(ratio: Any) -> dict[str, int]:
        return kept(prunus.compress(model, X[:4], ratio=ratio))

    assert by({model[0]: 0.5}) == {"0": 8}
    assert by({nn.Linear: 0.25}) == by({"[02]": 0.25}) == {"0": 12, "2": 12}
    with pytest.raises(ConfigError, match="which has another ratio"):
        by({nn.Linear: 0.25, "0": 0.5})


# --- what cannot be met


@pytest.mark.parametrize(
    "asked", [{"target": prunus.Target(channels=0.99)}, {"ratio": 0.01}, {"ratio": {"0": 0.02}}], ids=str
)
def test_a_target_that_removes_nothing_is_an_error(asked: dict[str, Any]):
    with pytest.raises(TargetError, match="removes nothing"):
        prunus.compress(net(), X[:4], **asked)


def test_nothing_asked_is_nothing_done():
    assert kept(compressed(target=prunus.Target(macs=1.0))) == {}


@pytest.mark.parametrize("target", [HALF, prunus.Target(macs=0.5)], ids=str)
def test_a_multiple_is_blamed_where_it_is_to_blame(target: prunus.Target):
    with pytest.raises(TargetError, match=r"multiples of 64: 0 \(16\); 2 \(16\)") as caught:
        compressed(target=target, multiple_of=64)
    assert "output" not in str(caught.value)


def test_a_floor_is_blamed_where_it_is_to_blame():
    with pytest.raises(TargetError, match=r"a floor of 0.9: 0 \(16\)"):
        compressed(target=prunus.Target(macs=0.5), floors=0.9)


@torch.library.custom_op("prunus_tests::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    return x.flip(-1).clone()


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_operators_without_a_rule_are_counted():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(turned(self.a(x)))

    with pytest.raises(TargetError, match=r"operators without a rule: prunus_tests.turned.default \(10\)"):
        prunus.compress(Turned(), X[:4], target=HALF)


# --- data and losses


class Samples(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(X, Y, strict=True)))


class Once:
    """Can be gone through once, without being an iterator."""

    def __init__(self) -> None:
        self.batches = iter([X[:32], X[32:]])

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


FORMS: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda folder: X,
    "array": lambda folder: X.numpy(),
    "array of doubles": lambda folder: X.double().numpy(),
    "dataset": lambda folder: TensorDataset(X, Y),
    "stream": lambda folder: Samples(),
    "loader": lambda folder: DataLoader(TensorDataset(X, Y), 32),
    "dictionaries": lambda folder: [{"input": X[:32], "labels": Y[:32]}, {"input": X[32:], "labels": Y[32:]}],
    "dictionary": lambda folder: {"input": X},
    "generator": lambda folder: (X[i : i + 32] for i in (0, 32)),
    "function": lambda folder: lambda: (X[i : i + 32] for i in (0, 32)),
    "once": lambda folder: Once(),
    "arrays": lambda folder: [X.numpy()[:32], X.numpy()[32:]],
    "pairs of arrays": lambda folder: [(X.numpy()[:32], Y.numpy()[:32]), (X.numpy()[32:], Y.numpy()[32:])],
    "file": lambda folder: saved(folder),
    "folder": lambda folder: str(saved(folder).parent),
}


def saved(folder: Path) -> Path:
    np.save(folder / "x.npy", X.numpy())
    return folder / "x.npy"


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_data_are_the_same_samples(form: str, tmp_path: Path):
    result = compressed(data=FORMS[form](tmp_path), recover="compensate")
    assert result.report.recovery is not None and result.report.recovery["samples"] == 64
    wanted = compressed(data=X, recover="compensate")
    assert result.plan.keep == wanted.plan.keep


def test_arguments_by_name():
    model, left, right = Named().eval(), torch.randn(64, 8), torch.randn(64, 4)
    forms: list[Any] = [
        {"right": right, "left": left},
        [(left[:32], right[:32]), (left[32:], right[32:])],
        [prunus.Inputs((left, right))],
        TensorDataset(left, right, torch.zeros(64)),
    ]
    for example in ((left[:2], right[:2]), {"left": left[:2], "right": right[:2]}):
        for data in forms[: 2 if isinstance(example, dict) else 4]:
            result = prunus.compress(model, example, target=HALF, data=data)
            assert result.report.recovery is not None and result.report.recovery["samples"] == 64
    with pytest.raises(ConfigError, match="lacks right; it has left"):
        prunus.compress(model, (left[:2], right[:2]), target=HALF, data=[{"left": left}])


def test_looking_at_the_first_batch_draws_no_random_numbers():
    captured = prunus.analyze(net(), X[:4]).captured
    before = torch.get_rng_state()
    require_fitting(captured, DataLoader(TensorDataset(X), 16, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
        None,
    ],
    ids=["module", "functional", "function", "default"],
)
def test_losses_in_all_forms_say_the_same(loss: Any):
    made = compressed(data=TensorDataset(X, Y), loss=loss, method="taylor", recover=False)
    default = compressed(data=TensorDataset(X, Y), method="taylor", recover=False)
    assert made.plan.keep == default.plan.keep


@pytest.mark.parametrize(
    ("loss", "data", "said"),
    [
        (nn.CrossEntropyLoss, TensorDataset(X, Y), r"pass an object, loss=nn.CrossEntropyLoss\(\)"),
        (3, TensorDataset(X, Y), "loss is a int"),
        (nn.CrossEntropyLoss(), X, "needs labels"),
        (lambda outputs, labels: F.cross_entropy(outputs, labels), TensorDataset(X, Y), r"f\(outputs, batch\[1\]\)"),
        (lambda outputs, batch: outputs, TensorDataset(X, Y), "must return a scalar"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_used_are_refused(loss: Any, data: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        compressed(data=data, loss=loss, method="taylor", recover=False)


# --- kinds of models


def prepared() -> nn.Module:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), *net(), quantization.DeQuantStub()).train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    return quantization.prepare_qat(model)


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return net()


def half_on_meta() -> nn.Module:
    model = net()
    model[2] = model[2].to("meta")
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (prepared, "prepared for quantization.*Prune the model before that"),
        (quantized, "quantize what comes back"),
        (on_meta, "on the meta device"),
        (half_on_meta, "2.weight and 1 more on the meta device"),
        (lazy, "has no shape yet"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_kind_of_model_has_its_sentence(make: Callable[[], Any], said: str):
    with pytest.raises(PrunusError, match=said):
        prunus.compress(make(), X[:4], target=HALF)


def test_a_model_on_meta_can_be_analyzed():
    assert len(prunus.analyze(on_meta(), X[:4]).prunable) == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]):
    assert type(prunus.compress(wrap(net()), X[:4], target=HALF).model) is nn.Sequential


def test_no_line_of_torch_is_given_for_the_users_own():
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 6), nn.Softsign(), nn.Linear(6, 2)))
    explained = str(prunus.analyze(graph, X[:4]).why("2"))
    assert "torch/" not in explained and "held" in explained


def test_samples_are_asked_for():
    with pytest.raises(CaptureError, match="pass at least one sample"):
        prunus.analyze(net(), (X[:0],))


def test_compiled_parts_run_as_they_are_written():
    model = net()
    model[0].compile()
    model[2] = torch.compile(model[2])  # type: ignore[assignment]
    result = prunus.compress(model, X[:4], target=HALF)
    assert result.report.form == "class" and len(result.plan.groups) == 2
