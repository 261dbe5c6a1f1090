"""Where in the user's code a node comes from."""

from pathlib import Path

import torch
from torch import fx

__all__ = ["place_of"]

_TORCH = str(Path(torch.__file__).parent)


def place_of(node: fx.Node) -> str:
    """Node, operator, module path and source line, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    files = [i for i, line in enumerate(trace) if line.startswith("File ")]
    files = [i for i in files if _TORCH not in trace[i]] or files  # the user's own line, if there is one
    module = f"module {paths[-1]!r}" if paths else "the model's own forward"
    where = [f"node {node.name!r} ({node.target})", module]
    if files:
        where.append(": ".join(trace[files[-1] : files[-1] + 2]))
    return ", ".join(where)
