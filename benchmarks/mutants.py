"""Does verification notice when the source is wrong? Each of 29 faults, on five kinds of networks.

    python benchmarks/mutants.py                 # writes benchmarks/results/mutants.md
    python benchmarks/mutants.py --only 3        # some of them
    python benchmarks/mutants.py --check         # writes nothing; status 1 if a wrong network was handed back

Each fault is a replacement in the text of a module, which must have that text once. It is compiled, and its functions take the
place of the right ones in a process of its own, forked after the networks were captured. A fault is caught where an error is
raised instead of a result. It survives where a network is handed back that differs from what the right source makes of the same
plan; where it makes no difference to a network, that network says nothing.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from _mutants import MUTANTS, Mutant, networks
from torch import Tensor

import prunus
from prunus.api import execute
from prunus.capture import Captured, capture
from prunus.structure import find_structure

PLANS = ((0, "uniform", {"channels": 0.5}), (1, "global", {"channels": 0.4}))  # seed, allocation, target


def install(mutant: Mutant) -> None:
    """Put a fault into this process."""
    module = importlib.import_module("prunus." + mutant.file.removesuffix(".py").replace("/", "."))
    text = inspect.getsource(module)
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name!r}: {mutant.file} has this text {text.count(mutant.old)} times, not once:\n{mutant.old}"
        )
    right, wrong = (
        dict(_codes(compile(source, str(module.__file__), "exec", dont_inherit=True)))
        for source in (text, text.replace(mutant.old, mutant.new))
    )
    changed = {
        name
        for name, code in wrong.items()
        if name not in right or (code.co_code, code.co_consts) != (right[name].co_code, right[name].co_consts)
    }
    functions = [function for function in _functions(module) if function.__code__.co_qualname in changed]
    if not functions:
        raise SystemExit(f"{mutant.name!r}: no function of {mutant.file} is changed by it")
    for function in functions:
        function.__code__ = wrong[function.__code__.co_qualname]


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from _codes(inner)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Functions and methods of a module, also those that a decorator wrapped."""
    for value in list(vars(module).values()):
        for found in vars(value).values() if inspect.isclass(value) else (value,):
            function = inspect.unwrap(found) if callable(found) else getattr(found, "func", None)
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


def in_a_fork(work: Callable[[], Any], folder: Path) -> Any:
    """What `work` returns in a process that ends with it."""
    file = folder / "found.pt"
    child = os.fork()
    if not child:
        try:
            warnings.simplefilter("ignore")
            torch.save(work(), file)
            os._exit(0)
        except BaseException:  # noqa: BLE001  the parent says that it failed
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("a process that runs a mutant ended otherwise than by an error of prunus")
    return torch.load(file, weights_only=True)


Known = dict[str, tuple[Captured, Tensor]]
Outcome = dict[str, Any]  # the class of an error, or a plan and the outputs of what it makes


def outcomes(known: Known, mutant: Mutant | None) -> dict[str, list[Outcome]]:
    """What a fault makes of every network and plan; None for the right source."""
    if mutant:
        install(mutant)
    return {name: _of_network(*network) for name, network in known.items()}


def _of_network(captured: Captured, x: Tensor) -> list[Outcome]:
    found: list[Outcome] = []
    try:
        structure = find_structure(captured)
    except Exception as error:  # noqa: BLE001  any error is better than a wrong network
        return [{"error": type(error).__name__}]
    for seed, allocation, share in PLANS:
        try:
            target = prunus.Target(**share)
            plan = prunus.plan(structure, method="random", seed=seed, allocation=allocation, target=target)
            found.append({"plan": plan.to_json(), "outputs": _outputs(execute(structure, plan).model, x)})
        except Exception as error:  # noqa: BLE001
            found.append({"error": type(error).__name__})
    return found


def _outputs(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x.clone())
    return [found] if isinstance(found, Tensor) else list(found)


def replayed(known: Known, plans: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What the right source makes of plans: outputs by plan, None where it refuses them."""
    found: dict[str, dict[str, Any]] = {}
    for name, (captured, x) in known.items():
        structure, found[name] = find_structure(captured), {}
        for plan in plans.get(name, []):
            try:
                found[name][plan] = _outputs(execute(structure, prunus.Plan.from_json(plan)).model, x)
            except prunus.PrunusError:
                found[name][plan] = None
    return found


def judged(outcome: list[Outcome], right: dict[str, Any]) -> str:
    """What became of one mutant on one network."""
    errors = sorted({one["error"] for one in outcome if "error" in one})
    wrong = [one for one in outcome if "error" not in one and _differs(one["outputs"], right[one["plan"]])]
    if wrong:
        return f"SURVIVED ({len(wrong)} of {len(outcome)})"
    return ", ".join(errors)


def _differs(found: list[Tensor], right: list[Tensor] | None) -> bool:
    if right is None or [x.shape for x in found] != [y.shape for y in right]:
        return True
    return any(
        float((x - y).abs().max()) > 1e-4 * float(y.abs().max()) for x, y in zip(found, right, strict=True)
    )


def measured(mutants: tuple[Mutant, ...]) -> dict[str, dict[str, str]]:
    """What became of every mutant on every network."""
    known = {name: (capture(model, x), x) for name, (model, x) in networks().items()}
    found: dict[str, dict[str, list[Outcome]]] = {}
    plans: dict[str, list[str]] = {name: [] for name in known}
    with tempfile.TemporaryDirectory() as folder:
        sound = in_a_fork(lambda: outcomes(known, None), Path(folder))
        if any("error" in one for every in sound.values() for one in every):
            errors = {name: [one.get("error") for one in every] for name, every in sound.items()}
            raise SystemExit(f"the right source raises errors, too: {errors}")
        for mutant in mutants:
            outcome = found[mutant.name] = in_a_fork(lambda m=mutant: outcomes(known, m), Path(folder))
            print(mutant.name, {k: [o.get("error", "-") for o in v] for k, v in outcome.items()}, flush=True)
            for name, every in outcome.items():
                plans[name] += [one["plan"] for one in every if "plan" in one]
        right = in_a_fork(
            lambda: replayed(known, {k: list(dict.fromkeys(v)) for k, v in plans.items()}), Path(folder)
        )
    return {
        mutant: {name: judged(every, right[name]) for name, every in outcome.items()}
        for mutant, outcome in found.items()
    }


def survivors(found: dict[str, dict[str, str]]) -> list[str]:
    """Mutants that handed back something wrong, or that no network noticed at all."""
    return [
        name
        for name, row in found.items()
        if any(cell.startswith("SURVIVED") for cell in row.values()) or not any(row.values())
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, nargs="+", help="numbers of some, from 0")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(MUTANTS if options.only is None else tuple(MUTANTS[i] for i in options.only))
    left = survivors(found)
    print(
        f"{len(found) - len(left)} of {len(found)} caught; "
        + ("none survived" if not left else f"SURVIVED: {left}")
    )
    if options.only is None and not options.check:
        _write(found)
    return 1 if left else 0


def _write(found: dict[str, dict[str, str]]) -> None:
    from _record import table, write

    kinds = list(next(iter(found.values())))
    rows = [[name, *(row[kind] or "no difference" for kind in kinds)] for name, row in found.items()]
    caught = len(found) - len(survivors(found))
    text = (
        "# Wrong source is noticed\n\n"
        f"{caught} of {len(found)} faults, put into the source of rules and surgery one at a time, are caught: wherever a fault makes "
        "a difference to a network, an error is raised, and no wrong network is handed back. Columns are networks of five kinds; "
        f"each is pruned {len(PLANS)} times.\n\n"
    )
    write("mutants", "python benchmarks/mutants.py", text + table(["fault", *kinds], rows))


if __name__ == "__main__":
    sys.exit(main())
