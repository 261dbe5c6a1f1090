"""What torch keeps of an export for as long as the process lives."""

import contextlib
import linecache
from collections.abc import Iterator
from typing import Any

from torch.export import ExportedProgram
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["forget_sizes", "forget_source", "sources_forgotten"]


def forget_sizes(program: ExportedProgram, own: bool) -> None:
    """Let go of what torch remembers about the free sizes of a graph.

    Tensors hold their sizes where no garbage collector looks, so that of a circle through them nothing would ever go.

    Args:
        own: whether the program is nobody else's.
    """
    for node in program.graph.find_nodes(op="placeholder"):
        sizes = getattr(getattr(node.meta.get("val"), "fake_mode", None), "shape_env", None)
        if sizes is not None:
            for name in ("fake_tensor_cache", "tracked_fakes") if own else ("fake_tensor_cache",):
                remembered = getattr(sizes, name, None)
                if remembered is not None:
                    remembered.clear()
            break
    for method in vars(
        ShapeEnv
    ).values():  # the caches of some have no limit, and hold all graphs that there were
        getattr(method, "cache_clear", lambda: None)()


def _texts() -> dict[str, Any]:
    return getattr(getattr(graph_module, "_loader", None), "eval_cache", {})


def forget_source(name: str) -> None:
    """Let go of the text of a graph, which is kept for tracebacks, by the name that its code has for a file."""
    linecache.cache.pop(name, None)
    _texts().pop(name, None)


@contextlib.contextmanager
def sources_forgotten() -> Iterator[None]:
    """Let go of the texts of the graphs that are made in the block; they run as before."""
    before = set(_texts())
    try:
        yield
    finally:
        for name in _texts().keys() - before:
            forget_source(name)
