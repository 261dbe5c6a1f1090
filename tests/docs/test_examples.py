"""The documentation tells the truth: its code runs, and prints what it says; its figures come from benchmarks."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import prunus
from prunus.criteria import CRITERIA
from prunus.structure.rules import RULES

ROOT = Path(prunus.__file__).parents[2]
PAGES = [
    "README.md",
    "docs/design.md",
    "docs/errors.md",
    "docs/adding.md",
    "docs/criteria.md",
    "docs/why.md",
    "docs/decomposition.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, code, and the output that the page shows right after it, if it does, of each python block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for match, following in zip(found, [*found[1:], None], strict=True):
        if match[1] != "python":
            continue
        line = text[: match.start()].count("\n") + 2
        between = text[match.end() : following.start()] if following else "-"
        shown = following[2] if following and following[1] == "text" and not between.strip() else None
        yield line, match[2], shown


def pattern(shown: str) -> re.Pattern[str]:
    """Expected output; `...` stands for anything."""
    return re.compile(".*?".join(re.escape(part) for part in shown.strip().split("...")), re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page == "README.md" else ()) for page in PAGES],
)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page share their names, as a reader would expect."""
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    criteria, rules = dict(CRITERIA), dict(RULES)
    try:
        for line, code, shown in blocks(page):
            torch.manual_seed(0)
            out = io.StringIO()
            program = compile("\n" * (line - 1) + code, str(ROOT / page), "exec")
            with contextlib.redirect_stdout(out):
                exec(program, space)
            if shown is not None:
                assert pattern(shown).fullmatch(out.getvalue().strip()), (
                    f"{page}:{line} prints\n{out.getvalue()}\nbut the page shows\n{shown}"
                )
    finally:
        for table, before in ((CRITERIA, criteria), (RULES, rules)):
            table.clear()
            table.update(before)


def test_the_pages_have_code() -> None:
    for page in PAGES:
        assert list(blocks(page)), page


def test_shown_output_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text("```python\nprint('a1')\n```\n\n```text\na...\n```\n")
    monkeypatch.setattr("tests.docs.test_examples.ROOT", tmp_path)
    ((_, _, shown),) = blocks("page.md")
    assert shown is not None
    assert pattern(shown).fullmatch("a1") and not pattern(shown).fullmatch("b1")


def test_the_readme_quotes_only_measured_figures() -> None:
    """Every row of its tables of results is a row of a file that a benchmark has written."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"<!-- results -->\n(.*?)<!-- /results -->", readme, re.DOTALL)
    rows = {
        line.strip()
        for line in quoted.splitlines()
        if line.startswith("|") and not re.match(r"\|[\s:|-]+\|$", line)
    }
    measured: set[str] = set()
    for file in (ROOT / "benchmarks" / "results").glob("*.md"):
        measured |= {line.strip() for line in file.read_text(encoding="utf-8").splitlines()}
    assert rows <= measured, rows - measured
