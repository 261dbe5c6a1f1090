"""A page for every criterion, as its docstring says today; the examples in docstrings run."""

import doctest
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import prunus
from prunus.criteria import CRITERIA

ROOT = Path(prunus.__file__).parents[2]
CLASSES = {name: cls for name, cls in CRITERIA.items() if cls.__module__.startswith("prunus.")}
MODULES = sorted(
    {cls.__module__ for cls in CLASSES.values()} | {"prunus.criteria.options", "prunus.evidence.store"}
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_criteria", ROOT / "docs" / "make_criteria.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_of_the_docstrings(script: ModuleType) -> None:
    folder = ROOT / "docs" / "criteria"
    made = script.pages()
    assert {file.name for file in folder.iterdir()} == set(made), "run: python docs/make_criteria.py"
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, (
            f"{name}: run python docs/make_criteria.py"
        )


@pytest.mark.parametrize("name", CLASSES)
def test_every_criterion_says_what_it_needs(name: str, script: ModuleType) -> None:
    text = script.page(name, CLASSES[name])
    assert len(text.split()) > 40 and f'method="{name}"' in text
    if name not in ("random", "index", "dead"):
        assert "## References" in text and CLASSES[name].__doc__
        assert re.search(r"\$|\n    \w+ = ", text)
        assert re.search(r"Needs:? (no )?data", text)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_names_may_be_anything_but_taken() -> None:
    assert {f.stem for f in (ROOT / "docs" / "criteria").iterdir()} - {"README"} == set(CLASSES)


def test_the_figures_of_which_one_to_take_are_measured() -> None:
    page = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    measured = (ROOT / "benchmarks" / "results" / "criteria.md").read_text(encoding="utf-8").splitlines()
    assert rows and set(rows) <= set(measured)
