"""A table of calls that make no sense: Python and command line, with the error that each must give.

Calls are text, so that the table can be read (and printed). What is in reach of them: see `Surroundings`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import prunus

LIMIT = 2.0  # seconds of the processor, several times what the slowest takes where nothing else runs


@dataclass(frozen=True)
class Call:
    """A call, the class of its error, and whether it is found before the model is captured."""

    text: str
    error: str
    early: bool = True


def _calls(error: str, *texts: str, early: bool = True) -> tuple[Call, ...]:
    return tuple(Call(text, error, early) for text in texts)


CALLS = (
    # ---------------------------------------------------------------- what is to be reached
    *_calls(
        "ConfigError",
        "prunus.compress(net, x)",
        "prunus.compress(net, x, target=prunus.Target())",
        "prunus.compress(net, x, target=prunus.Target(macs=0))",
        "prunus.compress(net, x, target=prunus.Target(macs=-0.5))",
        "prunus.compress(net, x, target=prunus.Target(params=50))",
        "prunus.compress(net, x, target=prunus.Target(channels=float('nan')))",
        "prunus.compress(net, x, target=prunus.Target(channels='half'))",
        "prunus.compress(net, x, target=prunus.Target(macs=0.5, params=0.5))",
        "prunus.compress(net, x, target='macs')",
        "prunus.compress(net, x, target=[0.5])",
        "prunus.compress(net, x, target=HALF, ratio=0.5)",
        "prunus.compress(net, x, ratio=1.5)",
        "prunus.compress(net, x, ratio='0.5')",
        "prunus.compress(net, x, ratio={'0': -0.1})",
        "prunus.compress(net, x, target=HALF, floors=2.0)",
        "prunus.compress(net, x, target=HALF, floors={'0': -1})",
        "prunus.compress(net, x, target=HALF, multiple_of=0)",
        "prunus.compress(net, x, target=HALF, multiple_of=-8)",
        "prunus.compress(net, x, target=HALF, multiple_of=2.5)",
    ),
    # ---------------------------------------------------------------- how
    *_calls(
        "ConfigError",
        "prunus.compress(net, x, target=HALF, method='l3')",
        "prunus.compress(net, x, target=HALF, method=3)",
        "prunus.compress(net, x, target=HALF, allocation='foo')",
        "prunus.compress(net, x, target=HALF, allocation=3)",
        "prunus.compress(net, x, target=HALF, options=3)",
        "prunus.compress(net, x, target=HALF, options={'normalize': 'mean'})",
        "prunus.compress(net, x, target=HALF, options=prunus.Options(layer_norm='foo'))",
        "prunus.compress(net, x, target=HALF, seed='a')",
        "prunus.compress(net, x, target=HALF, recover=3)",
        "prunus.compress(net, x, target=HALF, recover='all')",
        "prunus.compress(net, x, target=HALF, recover=['compensate', 'foo'])",
        "prunus.compress(net, x, target=HALF, loss=5)",
        "prunus.compress(net, x, target=HALF, evaluate=0.9)",
        "prunus.compress(net, x, target=HALF, progress='yes')",
        "prunus.compress(net, x, target=HALF, data=5)",
        "prunus.compress(net, x, target=HALF, checkpoint=folder / 'checkpoint')",
        "prunus.compress(net, x, table=5)",
        "prunus.register_criterion(5)(prunus.L2Norm)",
        "prunus.register_criterion('l2')(prunus.L2Norm)",
    ),
    *_calls(
        "ConfigError",
        "prunus.compress(net, x, target=HALF, method='taylor')",
        "prunus.compress(net, x, target=HALF, data=[])",
        "prunus.compress(net, x, target=HALF, data=[torch.randn(4, 9)])",
        "prunus.compress(net, x, target=HALF, data=[x.long()])",
        "prunus.compress(net, x, target=HALF, hold=['encoder.*'])",
        "prunus.compress(net, x, target=HALF, hold=[0])",
        "prunus.compress(net, x, target=HALF, hold=nn.Linear(2, 2))",
        "prunus.compress(net, x, target=HALF, hold=[nn.Conv2d])",
        "prunus.compress(net, x, target=HALF, hold=5)",
        "prunus.compress(net, x, target=HALF, floors={'conv9': 2})",
        "prunus.compress(net, x, ratio={'conv9': 0.5})",
        early=False,
    ),
    # ---------------------------------------------------------------- models and inputs
    *_calls(
        "SourceError",
        "prunus.analyze(None, x)",
        "prunus.analyze(5, x)",
        "prunus.analyze(net.state_dict(), x)",
        "prunus.analyze([net], x)",
        "prunus.analyze(type(net), x)",
        "prunus.compress(net, x, target=HALF, data='nowhere')",
        "prunus.compress(scripted, x, target=HALF)",
        "prunus.compress(quantized, x, target=HALF)",
    ),
    *_calls(
        "ConfigError",
        "prunus.analyze(net)",
        "prunus.analyze(net, 5)",
        "prunus.analyze(net, 'x')",
        "prunus.analyze(net, prunus.Inputs('a', 'b'))",
    ),
    *_calls(
        "CaptureError",
        "prunus.analyze(net, torch.randn(4, 9))",
        "prunus.analyze(net, (x, x))",
        "prunus.analyze(net, {'images': x})",
        "prunus.analyze(net, x[:0])",
        "prunus.analyze(net, x.long())",
        "prunus.analyze(net, x.double())",
        "prunus.analyze(net, x.to('meta'))",
        "prunus.compress(spoiled, x, target=HALF)",
        "prunus.compress(endless, x, target=HALF)",
        "prunus.compress(branching, x, target=HALF)",
        "prunus.compress(failing, x, target=HALF)",
        "prunus.compress(lazy, x, target=HALF)",
        early=False,
    ),
    *_calls(
        "TargetError",
        "prunus.compress(net, x, target=prunus.Target(macs=1e-9))",
        "prunus.compress(net, x, target=prunus.Target(params=0.01), hold=['0'])",
        "prunus.compress(net, x, target=HALF, hold=['*'])",
        "prunus.compress(one_layer, x, target=HALF)",
        "prunus.compress(net, x, target=HALF, multiple_of=64)",
        early=False,
    ),
    Call("prunus.compress(net_on_meta, x, target=HALF)", "SourceError", early=False),
    # ---------------------------------------------------------------- plans
    *_calls(
        "PlanError",
        "prunus.Plan.from_json('{')",
        "prunus.Plan.from_json('[]')",
        "prunus.Plan.from_json('{}')",
        "prunus.Plan.from_json('null')",
        "prunus.Plan.from_json(plan.to_json()[:-20])",
        "prunus.Plan.from_json(changed(plan, version=99))",
        "prunus.Plan.from_json(changed(plan, groups=5))",
        "prunus.Plan.from_json(changed(plan, seed='a'))",
        "prunus.Plan.from_json('[' * 100000)",
        "prunus.Plan.load(folder / 'nothing.json')",
        "prunus.Plan.load(folder)",
        "prunus.Plan.load(damaged)",
        "plan.with_keep('conv9', [0])",
    ),
    *_calls(
        "PlanError",
        "prunus.apply(net, plan.with_keep('0', [99]))",
        "prunus.apply(net, plan.with_keep('0', []))",
        "prunus.apply(net, plan.with_keep('0', [-1]))",
        "prunus.apply(other, plan, example_inputs=torch.randn(2, 3))",
        "prunus.compress(net, x, method=prunus.ByIndex(remove={'conv9': [0]}))",
        "prunus.compress(net, x, method=prunus.ByIndex(remove={'0': [0, 0]}))",
        "prunus.compress(net, x, method=prunus.ByIndex(remove={'0': [99]}))",
        "prunus.compress(net, x, method=prunus.ByIndex(remove={'0': range(16)}))",
        "prunus.compress(net, x, method=prunus.ByIndex(remove={'4': [0]}))",
        "structure.group('conv9')",
        early=False,
    ),
    *_calls(
        "PrunusError",
        "prunus.apply(net, None)",
        "prunus.apply(net, 5)",
        "prunus.apply(net, {'0': [1]})",
        "prunus.apply(net, folder / 'nothing.json')",
        "prunus.Plan.from_json(None)",
        "prunus.Plan.from_json(5)",
        "prunus.Plan.load(None)",
        "plan.save(5)",
        "prunus.plan(net, target=HALF)",
        "prunus.plan(None, target=HALF)",
        "prunus.apply(5, plan)",
        "structure.group(5)",
        "structure.why(None)",
        "structure.why('conv9')",
        "prunus.compress(net, x, target=HALF, method=lambda view: torch.ones(view.size, dtype=torch.complex64))",
        "prunus.compress(net, x, target=HALF, method=lambda view: torch.ones(3))",
        "prunus.compress(net, x, target=HALF, method=lambda view: None)",
        "prunus.compress(net, x, target=HALF, method=lambda view: torch.full((view.size,), float('nan')))",
        early=False,
    ),
    # ---------------------------------------------------------------- decomposition
    *_calls(
        "PrunusError",
        "prunus.decompose(net, x)",
        "prunus.decompose(net, x, target=prunus.Target(params=2))",
        "prunus.decompose(net, x, target=HALF, method='lu')",
        "prunus.decompose(net, None, target=prunus.Target(params=0.5))",
        "prunus.decompose(5, x, target=prunus.Target(params=0.5))",
        "prunus.recalibrate(5, [x])",
        "prunus.recalibrate(net, 5)",
        early=False,
    ),
    # ---------------------------------------------------------------- files
    *_calls(
        "ArtefactError",
        "prunus.load(None)",
        "prunus.load(5)",
        "prunus.load(folder / 'nothing')",
        "prunus.load(folder)",
        "prunus.load('')",
        "prunus.load('a\\0b')",
        "prunus.load('a' * 5000)",
        "prunus.load(damaged)",
        "result.save(folder)",
        "result.save(folder, overwrite=True)",
        "result.save(damaged / 'inside')",
        "result.save('a\\0b')",
        "result.save(None)",
    ),
    *_calls(
        "SourceError",
        "prunus.analyze(str(folder / 'nothing.pt2'))",
        "prunus.load_weights(damaged)",
        "prunus.load_weights(None)",
        "prunus.load_weights(folder / 'nothing.pth')",
        "prunus.analyze(str(damaged), x)",
        "prunus.analyze('net.pth', x)",
        "prunus.analyze('')",
        "prunus.analyze('a\\0b.pt2')",
    ),
    # ---------------------------------------------------------------- the command line: 1 is an error of prunus, 2 of the words
    *_calls(
        "exit 2",
        "$ compress",
        "$ compres",
        "$ compress SOURCE --method l3 -o OUT --macs 0.5",
        "$ compress SOURCE --macs half -o OUT",
        "$ compress SOURCE --seed a --macs 0.5 -o OUT",
        "$ inspect",
        "$ inspect SOURCE --wrong",
        "$ inspect SOURCE --input 1x3x",
        "$ inspect SOURCE --input 1x3x8x8:int99",
        "$ compress SOURCE -o OUT",
        "$ compress SOURCE -o OUT --macs 0",
        "$ compress SOURCE -o OUT --macs 50",
        "$ compress SOURCE -o OUT --macs 0.5 --params 0.5",
        "$ plan SOURCE -o OUT --macs 7",
        "$ decompose SOURCE -o OUT",
    ),
    *_calls(
        "exit 1",
        "$ inspect nowhere:build",
        "$ inspect tests.cli.nets:nothing",
        "$ inspect nothing.pt2",
        "$ inspect DAMAGED",
        "$ compress SOURCE -o FOLDER --macs 0.5",
        "$ apply SOURCE nothing.json -o OUT",
        "$ apply SOURCE DAMAGED -o OUT",
    ),
    *_calls(
        "exit 1",
        "$ compress SOURCE -o OUT --macs 0.5 --hold 'nothing.*'",
        "$ compress SOURCE -o OUT --macs 0.5 --data nothing",
        early=False,
    ),
)


class Branching(nn.Module):
    """A forward that depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if y.sum() > 0 else -y


class Failing(nn.Linear):
    """A forward with a mistake of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.missing  # type: ignore[operator]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    model = nn.Sequential(*layers).train()
    model[1].eval()
    model[2].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones(16, 8)
    return model


def _filled(value: float) -> nn.Sequential:
    model = _net()
    with torch.no_grad():
        model[0].weight[2, 1] = value
    return model


def _quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(_net().eval(), {nn.Linear}, torch.qint8)


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_net())


class Surroundings:
    """What calls are made with: a model in the middle of its training, other models, a good plan and result, files."""

    def __init__(self, folder: Path) -> None:
        self.model, self.folder = _net(), folder
        x, half = torch.randn(4, 8), prunus.Target(channels=0.5)
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("not prunus's")
        damaged = folder / "damaged.pt2"
        damaged.write_bytes(b"PK\x03\x04" + bytes(100))
        structure = prunus.analyze(self.model, x)
        plan = prunus.plan(structure, target=half)
        self.names: dict[str, Any] = {
            "prunus": prunus, "torch": torch, "nn": nn, "np": np, "net": self.model, "x": x, "HALF": half, "folder": folder,
            "damaged": damaged, "structure": structure, "plan": plan, "result": prunus.apply(self.model, plan),
            "other": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "one_layer": nn.Linear(8, 3),
            "spoiled": _filled(float("nan")), "endless": _filled(float("inf")), "branching": Branching(), "failing": Failing(8, 2),
            "lazy": nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2)), "net_on_meta": _net().to("meta"),
            "scripted": _scripted(), "quantized": _quantized(),
            "changed": lambda plan, **fields: json.dumps({**json.loads(plan.to_json()), **fields}),
        }  # fmt: skip

    def state(self) -> str:
        """A digest of all that must not change: numbers, modes, gradients and whether they are wanted, hooks, files."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            digest.update(f"{name} {id(tensor)} {tensor.requires_grad} {id(tensor.grad)}".encode())
            digest.update(tensor.detach().numpy().tobytes())
        for name, module in self.model.named_modules():
            hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
            digest.update(f"{name} {id(module)} {module.training} {hooks} {sorted(vars(module))}".encode())
        for file in sorted(self.folder.rglob("*")):
            digest.update(f"{file} {file.read_bytes() if file.is_file() else ''}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a call gave: the class of the error (a base class is named where one was raised below it), and how it was found."""

    error: str
    message: str
    seconds: float
    untouched: bool
    captured: bool


def outcome(call: Call, around: Surroundings) -> Outcome:
    """Make a call."""
    before, start = around.state(), time.process_time()
    with _exports() as exported, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error, message = (
            _of_words(call.text, around) if call.text.startswith("$ ") else _of_python(call.text, around)
        )
    seconds = time.process_time() - start
    return Outcome(error, message, seconds, around.state() == before, bool(exported))


def _of_python(text: str, around: Surroundings) -> tuple[str, str]:
    try:
        eval(text, dict(around.names))
    except prunus.PrunusError as error:
        return type(error).__name__, str(error)
    except Exception as error:  # noqa: BLE001  it is what this is about
        return f"bare {type(error).__name__}", str(error)
    return "accepted", ""


def _of_words(text: str, around: Surroundings) -> tuple[str, str]:
    from prunus.cli.main import app

    places = {
        "SOURCE": "tests.cli.nets:build_with_inputs",
        "OUT": str(around.folder / "out"),
        "DAMAGED": str(around.folder / "damaged.pt2"),
        "FOLDER": str(around.folder),
    }
    words = [places.get(word, word).strip("'") for word in text.split()[1:]]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "80", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"bare {type(result.exception).__name__}", str(result.exception)
    return (f"exit {result.exit_code}" if result.exit_code else "accepted"), result.output


@contextlib.contextmanager
def _exports() -> Iterator[list[int]]:
    """How often torch was asked to export."""
    calls, real = [], torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    torch.export.export = counted
    try:
        yield calls
    finally:
        torch.export.export = real


def problem(call: Call, found: Outcome) -> str:
    """What is wrong with what a call gave; empty if nothing."""
    wanted = call.error
    if found.error != wanted and not (
        wanted == "PrunusError" and issubclass(getattr(prunus, found.error, object), prunus.PrunusError)
    ):
        return f"{found.error} instead of {wanted}: {found.message[:200]}"
    if not found.untouched:
        return "the model or a file was changed"
    if call.early and found.captured:
        return "found only after the model was captured"
    if not found.message.strip() or "Traceback" in found.message:
        return f"no message for people: {found.message[:200]!r}"
    return "" if found.seconds < LIMIT else f"took {found.seconds:.1f} s"
