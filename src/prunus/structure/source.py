"""Where in the user's code a node comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

__all__ = ["code_of", "module_of"]

_TORCH = str(Path(torch.__file__).parent)
_FILE = re.compile(r'^File "(?P<file>.*)", line (?P<line>\d+)')


def module_of(node: fx.Node) -> str:
    """The path of the module in whose forward the node is; empty for the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values()) if path), "")


def code_of(node: fx.Node) -> str:
    """The innermost line of the user's own code, as ``file:line: `code` ``; empty where it is not known, as in a graph module."""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    found = [(i, match) for i, line in enumerate(trace) if (match := _FILE.match(line))]
    found = [each for each in found if not each[1]["file"].startswith((_TORCH, "<"))]
    if not found:
        return ""
    i, match = found[-1]
    code = trace[i + 1] if i + 1 < len(trace) and not _FILE.match(trace[i + 1]) else ""
    return f"{match['file']}:{match['line']}" + (f": `{code}`" if code else "")
