"""The names that users see: few, explicit, documented, and not shadowed by modules of the same name."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus

NAMES = prunus.__all__
ROOT = Path(prunus.__file__).parents[2]


def test_the_names_are_few_and_sorted() -> None:
    assert NAMES == sorted(set(NAMES))
    assert 10 < len(NAMES) <= 45


def test_what_is_promised_is_there() -> None:
    promised = """analyze plan apply compress decompose load Result Target Plan GroupPlan Structure Group Member
    Inputs Report Verification L1Norm L2Norm GeometricMedian BatchNormScale Options LayerTable Random
    ByIndex GroupView MemberView Criterion register_criterion PrunusError InputError"""
    assert set(promised.split()) <= set(NAMES)
    errors = {name for name in vars(prunus.errors) if name.endswith("Error")}
    assert errors <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented(name: str) -> None:
    thing = getattr(prunus, name)
    text = (thing.__doc__ or "").strip()
    assert len(text.split()) >= 5, f"prunus.{name} has no docstring of its own"
    assert not text.startswith(f"{name}("), f"prunus.{name} has only what dataclass writes"


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_documented(name: str) -> None:
    thing = getattr(prunus, name)
    if inspect.isfunction(thing):
        text, names = inspect.getdoc(thing) or "", list(inspect.signature(thing).parameters)
        if "Args:" not in text and len(names) < 2:
            return
    elif dataclasses.is_dataclass(thing):
        text = inspect.getdoc(thing) or ""
        names = [field.name for field in dataclasses.fields(thing) if field.repr]
    else:
        return
    missing = [n for n in names if n not in text]
    assert missing == [], f"prunus.{name} does not say what these are"


def test_functions_are_not_shadowed_by_modules() -> None:
    code = (
        "import prunus, prunus.plan, prunus.api, prunus.decide, prunus.cli; print(type(prunus.plan).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "function"


def test_nothing_else_is_reachable_by_a_star_import() -> None:
    space: dict[str, object] = {}
    exec("from prunus import *", space)
    assert set(space) - {"__builtins__"} == set(NAMES)


def test_errors_have_one_root() -> None:
    for name in NAMES:
        thing = getattr(prunus, name)
        if inspect.isclass(thing) and issubclass(thing, Exception):
            assert issubclass(thing, prunus.PrunusError)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/design.md",
        "docs/errors.md",
        "docs/adding.md",
        "docs/criteria.md",
        "docs/decomposition.md",
    ],
)
def test_pages_name_only_what_exists(page: str) -> None:
    for name in re.findall(r"\bprunus\.([A-Za-z_0-9]+)", (ROOT / page).read_text()):
        module = ROOT / "src" / "prunus" / name
        assert hasattr(prunus, name) or module.is_dir() or module.with_suffix(".py").is_file(), name


def test_every_error_has_its_section() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    for name in NAMES:
        if name.endswith("Error"):
            assert f"## {name}" in page, name


def test_the_steps_and_the_one_call_agree() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 6)
    target = prunus.Target(params=0.6)
    at_once = prunus.compress(net, x, target=target)
    made = prunus.plan(prunus.analyze(net, x), target=target)
    in_steps = prunus.apply(net, made)
    assert at_once.plan == made == in_steps.plan
    torch.testing.assert_close(at_once.model(x), in_steps.model(x), rtol=0, atol=0)
    assert at_once.report.after.params <= 0.6 * at_once.report.before.params
