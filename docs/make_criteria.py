"""Write docs/criteria/NAME.md for every criterion, from its docstring, and their list docs/criteria/README.md.

python docs/make_criteria.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from prunus.criteria import CRITERIA, needs_of

FOLDER = Path(__file__).parent / "criteria"
SECTIONS = ("Caution", "Attributes", "Raises", "Example", "References")
NOTE = "<!-- written by docs/make_criteria.py from the docstring of {cls}; edit that -->"


def sections_of(text: str) -> dict[str, str]:
    """Name of each section -> its text without indentation; what stands before the first is under the empty name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        head = re.fullmatch(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            name = head[1]
            found[name] = []
        else:
            found[name].append(line)
    return {name: inspect.cleandoc("\n" + "\n".join(lines)).strip() for name, lines in found.items()}


def listed(text: str) -> str:
    """`name: text` with its indented lines as a list."""
    items = re.split(r"\n(?=\S)", text)
    named = [re.sub(r"^([`\w]+):", r"**\1**:", item) for item in items]
    return "\n".join("- " + " ".join(item.split()) for item in named)


def needs_in_words(cls: type) -> str:
    """What the criterion asks for."""
    needs = needs_of(cls()) if name_of(cls) not in ("index", "dead") else ()
    if any(need.gradients for need in needs):
        return "data and a loss"
    if any(need.where == "product" for need in needs):
        return "data where two activations are multiplied"
    return "data" if needs else "weights"


def name_of(cls: type) -> str:
    """The registered name."""
    return next(name for name, known in CRITERIA.items() if known is cls)


def arguments(cls: type) -> str:
    """How the class is called."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    given = [f.name + ("" if f.default is dataclasses.MISSING else f"={f.default!r}") for f in fields]
    return f"{cls.__name__}({', '.join(given)})"


def page(name: str, cls: type) -> str:
    """One page."""
    parts = sections_of(inspect.cleandoc(cls.__doc__ or ""))
    body = re.sub(r"\n(?=(Needs|Cost)\b)", "\n", parts[""])
    import prunus

    where = "prunus" if hasattr(prunus, cls.__name__) else "prunus.criteria"
    lines = [
        NOTE.format(cls=cls.__name__),
        f"# {cls.__name__}",
        f'`method="{name}"`, or `{where}.{arguments(cls)}`. Looks at: {needs_in_words(cls)}.',
        body,
    ]
    for section in SECTIONS:
        if section in parts:
            text = parts[section]
            text = f"```pycon\n{text}\n```" if section == "Example" else text
            text = listed(text) if section in ("Attributes", "Raises") else text
            lines += [f"## {'Options' if section == 'Attributes' else section}", text]
    return "\n\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name -> content of all pages."""
    classes = {name: cls for name, cls in sorted(CRITERIA.items()) if cls.__module__.startswith("prunus.")}
    made = {f"{name}.md": page(name, cls) for name, cls in classes.items()}
    rows = ["| name | class | what it says of a channel | looks at |", "|---|---|---|---|"]
    for name, cls in classes.items():
        summary = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        rows.append(
            f"| [`{name}`]({name}.md) | `{cls.__name__}` | {' '.join(summary.split())} | {needs_in_words(cls)} |"
        )
    head = "<!-- written by docs/make_criteria.py -->\n\n# Criteria\n\n"
    tail = "\n\nWhich one to take: [measured](../which.md). How scores become choices: [choosing what goes](../criteria.md).\n"
    return {**made, "README.md": head + "\n".join(rows) + tail}


def main() -> None:
    """Write the pages; remove those of criteria that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
