"""Whatever is called, and however it ends: the process is as it was, also for other threads."""

import gc
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TARGET = prunus.Target(channels=0.5)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.up, self.norm, self.down = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).relu())


class Failing(Net):
    """Its forward raises once it has run a few times: in the middle of whatever is being done."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.left = runs

    def forward(self, x: Tensor) -> Tensor:
        Failing.count += 1
        if Failing.count > self.left:
            raise RuntimeError("told to")
        return super().forward(x)

    count = 0


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def loggers() -> dict[str, Any]:
    names = [
        name for name in logging.root.manager.loggerDict if name.startswith("torch") and "_trace" not in name
    ]
    found = [logging.root, *map(logging.getLogger, names)]
    return {
        each.name: (each.level, list(each.handlers), list(each.filters), each.propagate) for each in found
    }


def process() -> dict[str, Any]:
    """All that a thread can see of the others' work."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "mkldnn": mkldnn.enabled,
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "filters": list(warnings.filters),
        "warnings": (warnings.showwarning, warnings.warn),
        "streams": (sys.stderr, sys.stdout),
        "collector": gc.isenabled(),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "workers": threading.active_count(),
    }


@pytest.fixture(scope="module")
def made() -> prunus.Result:
    return prunus.compress(Net().eval(), X, target=TARGET)


@pytest.fixture(scope="module")
def folder(made: prunus.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.save(tmp_path_factory.mktemp("saved") / "out")


CALLS: dict[str, tuple[Callable[..., Any], bool | None]] = {
    "analyze": (lambda made, folder: prunus.analyze(Net(), X), True),
    "analyze a model that fails": (lambda made, folder: prunus.analyze(Failing(0), X), False),
    "analyze inputs that do not fit": (lambda made, folder: prunus.analyze(Net(), X[:, :5]), False),
    "plan": (lambda made, folder: prunus.plan(made.structure, target=TARGET), True),
    "plan without reach": (lambda made, folder: prunus.plan(made.structure, target=prunus.Target(params=0.001)), False),
    "apply": (lambda made, folder: prunus.apply(Net(1), made.plan), True),
    "apply a plan of another model": (lambda made, folder: prunus.apply(Net().up, made.plan), False),
    "compress": (lambda made, folder: prunus.compress(Net(), X, target=TARGET, data=[X, -X]), True),
    "compress a model that fails": (lambda made, folder: prunus.compress(Failing(1), X, target=TARGET), None),
    "compress data that fails": (lambda made, folder: prunus.compress(Net(), X, target=TARGET, data=failing_data()), False),
    "decompose": (lambda made, folder: prunus.decompose(Net(), X, target=prunus.Target(params=0.9)), True),
    "recalibrate": (lambda made, folder: prunus.recalibrate(Net(), [X, -X]), True),
    "recalibrate data that fails": (lambda made, folder: prunus.recalibrate(Net(), failing_data()), False),
    "load": (lambda made, folder: prunus.load(folder), True),
    "load what is damaged": (lambda made, folder: prunus.load(damaged(folder)), False),
    "save": (lambda made, folder: made.save(folder.with_name("again"), overwrite=True), True),
    "save over a file": (lambda made, folder: made.save(folder / "plan.json"), False),
}  # fmt: skip


def failing_data() -> Any:
    yield X
    raise RuntimeError("told to")


def damaged(folder: Path) -> Path:
    copy = folder.with_name("damaged")
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-1])
    return copy


@pytest.mark.parametrize("unusual", [False, True], ids=["", "with other settings"])
@pytest.mark.parametrize("name", CALLS)
def test_the_process_is_as_it_was(name: str, unusual: bool, made: prunus.Result, folder: Path) -> None:
    call, succeeds = CALLS[name]
    Failing.count = 0
    threads = torch.get_num_threads()
    try:
        if unusual:
            torch.set_grad_enabled(False)
            torch.set_num_threads(3)
            torch.set_float32_matmul_precision("medium")
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            gc.disable()
            warnings.filterwarnings("ignore", message="of the user")
        ours, before = loggers(), process()
        try:
            call(made, folder)
            ended = True
        except (prunus.PrunusError, RuntimeError):
            ended = False
        after = process()
        assert {key: (value, after[key]) for key, value in before.items() if after[key] != value} == {}
        assert {key: loggers()[key] for key in ours} == ours
        assert succeeds in (None, ended)
    finally:
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
        gc.enable()


# --- threads


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each gives, all at once; the first error."""
    results: dict[int, Any] = {}

    def run(number: int, each: Callable[[], Any]) -> None:
        try:
            results[number] = each()
        except BaseException as error:  # noqa: BLE001  handed on to the test
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[number] for number in range(len(work))]


def test_calls_in_threads_are_right(made: prunus.Result, folder: Path, tmp_path: Path) -> None:
    shared, first, third, before = (
        Net(7),
        Net(0),
        Net(3),
        process(),
    )  # made here, as seeds are of the whole process
    expected = prunus.compress(shared, X, target=TARGET)
    found = in_threads(
        lambda: prunus.compress(shared, X, target=TARGET).model,
        lambda: prunus.apply(first, made.plan, example_inputs=X).model,
        lambda: prunus.load(folder),
        lambda: prunus.compress(shared, X, target=TARGET).model,
        lambda: prunus.decompose(third, X, target=prunus.Target(params=0.9)).model,
        lambda: prunus.load(made.save(tmp_path / "out")),
        lambda: prunus.analyze(shared, X),
    )
    for index, model in [
        (0, expected.model),
        (1, made.model),
        (2, made.model),
        (3, expected.model),
        (5, made.model),
    ]:
        assert same(weights(found[index]), weights(model)), f"call {index} gave other weights"
    assert shared.training and vars(shared).keys() == vars(Net()).keys()
    assert {key: value for key, value in process().items() if key != "random" and value != before[key]} == {}


def test_other_threads_go_on_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch in threads of the user's own computes and prints what it does alone, and their failures are theirs."""
    model, done = Net(2), threading.Event()
    expected = weights(trained(2, 30))

    def own() -> dict[str, Tensor]:
        found = weights(trained(2, 30))
        sys.stderr.write("printed")
        done.set()
        return found

    found, result = in_threads(own, lambda: prunus.compress(model, X, target=TARGET))
    assert done.is_set() and same(found, expected)
    assert result.report.after.params < result.report.before.params
    assert "printed" in capfd.readouterr().err


def trained(seed: int, steps: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 6, generator=generator))
        layer.bias.zero_()  # type: ignore[union-attr]
    for _ in range(steps):
        layer(X).square().mean().backward()
        with torch.no_grad():
            layer.weight -= 0.1 * layer.weight.grad  # type: ignore[operator]
        layer.zero_grad()
    return layer


def test_a_call_within_a_call(made: prunus.Result) -> None:
    def data() -> Any:
        assert same(weights(prunus.apply(Net(), made.plan).model), weights(made.model))
        yield X

    assert prunus.recalibrate(made.model, data()) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_wait_for_ours() -> None:
    from prunus.alone import alone

    @alone
    def forked() -> int:
        child = os.fork()
        if not child:
            waits = threading.Thread(target=alone(lambda: os._exit(0)), daemon=True)
            waits.start()
            waits.join(20)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert forked() == 0


@pytest.mark.slow
def test_nothing_of_a_model_stays_in_memory(tmp_path: Path) -> None:
    """After 50 calls there are as many tensors, modules, graphs and results as before, and hardly more of anything else."""

    def alive() -> dict[str, int]:
        gc.collect()
        kinds = (
            Tensor,
            nn.Module,
            torch.fx.Node,
            torch.fx.Graph,
            prunus.Result,
            prunus.Plan,
            prunus.Structure,
        )
        found = gc.get_objects()
        return {kind.__name__: sum(issubclass(type(each), kind) for each in found) for kind in kinds} | {
            "all": len(found)
        }

    def once() -> None:
        result = prunus.compress(Net(), X, target=TARGET)
        prunus.load(result.save(tmp_path / "out", overwrite=True))

    for _ in range(10):
        once()
    before = alive()
    for _ in range(50):
        once()
    after = alive()
    grown = after.pop("all") - before.pop("all")
    assert after == before
    assert grown < 50 * 20, f"{grown / 50:.0f} objects a call"
