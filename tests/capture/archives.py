"""Archives of programs, changed as whoever sends one can change it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Marker", "edit_json", "rewrite", "same", "set_everywhere", "walk"]


class Marker:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def rewrite(
    path: Path, edit: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None, **how: Any
) -> None:
    """Change the entries of an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    root = entries[0][0].split("/")[0]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in entries:
            archive.writestr(name, edit(name, content))
        for name, content in (more or {}).items():
            archive.writestr(f"{root}/{name}", content)


def edit_json(part: str, change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, content: bytes) -> bytes:
        if part not in name:
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return edit


def walk(tree: Any) -> Any:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from walk(item)


def set_everywhere(key: str, value: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        hits = [item for item in walk(tree) if key in item]
        assert hits, f"the file has no {key} to change"
        for item in hits:
            item[key] = value

    return change


def same(name: str, content: bytes) -> bytes:
    return content
