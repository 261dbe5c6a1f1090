"""What code around some submodules does with their parameters and with what they return, seen in one real forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunus.capture.preserve import buffers_kept
from prunus.inputs import Inputs

__all__ = ["Flow", "Leaf", "kind_of_call", "run_once", "watched"]

# what may be asked of a tensor without depending on its values or sizes
_HARMLESS = frozenset(
    "dtype device requires_grad is_cuda layout is_leaf grad is_floating_point ndim dim".split()
)

Leaf = tuple[str, str, int]  # path of a submodule, kind of call, number of the leaf in what it returns


@dataclass
class Flow:
    """How values flow between submodules.

    Attributes:
        links: (path, kind of call) -> number of the leaf among its arguments -> where just this tensor was returned
            before, in each such call; None for a tensor that comes from elsewhere.
        read: What a submodule returned -> axes of which other code reads the size.
        opened: What a submodule returned and other code computes with, or returns.
        used: Names of parameters and buffers of the submodules that other code uses.
        touched: Names of parameters that any code used, of all that are not in the submodules.
    """

    links: dict[tuple[str, str], dict[int, set[Leaf | None]]] = field(default_factory=dict)
    read: dict[Leaf, set[int]] = field(default_factory=dict)
    opened: set[Leaf] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)


def kind_of_call(args: Any, kwargs: Any) -> str:
    """Calls of one kind differ in the numbers of their tensors only."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return f"{spec} " + " ".join(
        f"{tuple(leaf.shape)}{leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )


def loose_kind(args: Any, kwargs: Any) -> str:
    """Calls of one loose kind may differ in the size of the batch too."""
    leaves = pytree.tree_leaves((args, kwargs))
    size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)

    def loose(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return f"{tuple(leaf.shape[1:])}{leaf.dtype}" if leaf.dim() and leaf.shape[0] == size else leaf

    return kind_of_call(*pytree.tree_map(loose, (args, kwargs)))


def run_once(model: nn.Module, example: Inputs, mode: TorchFunctionMode | None = None) -> Any:
    """One real forward without gradients, after which buffers are as before."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (example.args, example.kwargs))
    with torch.no_grad(), buffers_kept(model), ExitStack() as stack:
        if mode is not None:
            stack.enter_context(mode)
        return model(*args, **kwargs)


def watched(model: nn.Module, examples: Sequence[Inputs], parts: list[str]) -> Flow:
    """Run the model on each example and watch what is done outside of the parts."""
    watch = _Watch(_names(model, parts), {id(each): name for name, each in model.named_parameters()})
    with ExitStack() as stack:
        for path in parts:
            module = model.get_submodule(path)
            before, after = watch.hooks(path)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        results = [run_once(model, example, watch) for example in examples]
    for leaf in pytree.tree_leaves(results):
        watch.open(leaf)
    return watch.flow


def _names(model: nn.Module, parts: list[str]) -> dict[int, str]:
    names: dict[int, str] = {}
    for path in parts:
        module = model.get_submodule(path)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            names.setdefault(id(tensor), f"{path}.{name}")
    return names


class _Watch(TorchFunctionMode):
    def __init__(self, names: dict[int, str], parameters: dict[int, str]) -> None:
        super().__init__()
        self.flow = Flow()
        self.names = names
        self.others = {key: name for key, name in parameters.items() if key not in names}
        self.depth = 0
        self.returned: dict[int, tuple[Tensor, Leaf]] = {}  # the tensors too, so that no id is used twice

    def hooks(self, path: str) -> tuple[Any, Any]:
        """To be called before and after each forward of a part."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.depth += 1  # first, so that what is looked at here does not count
            if self.depth == 1:
                self._entered(path, args, kwargs)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.depth == 1:
                kind = kind_of_call(args, kwargs)
                for number, leaf in enumerate(pytree.tree_leaves(output)):
                    if isinstance(leaf, Tensor):
                        self.returned[id(leaf)] = leaf, (path, kind, number)
            self.depth -= 1

        return before, after

    def _entered(self, path: str, args: Any, kwargs: Any) -> None:
        links = self.flow.links.setdefault((path, kind_of_call(args, kwargs)), {})
        for number, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
            source = self.returned[id(leaf)][1] if id(leaf) in self.returned else None
            links.setdefault(number, set()).add(source)

    def open(self, value: Any) -> None:
        """Other code computes with a value."""
        if isinstance(value, _Sizes):
            value.note_all()
        elif isinstance(value, Tensor) and id(value) in self.names:
            self.flow.used.add(self.names[id(value)])
        elif isinstance(value, Tensor) and id(value) in self.returned:
            self.flow.opened.add(self.returned[id(value)][1])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        asked = _asked(func)
        if self.depth or asked in _HARMLESS:
            return result
        subject = args[0] if args else None
        if asked in ("shape", "size") and isinstance(subject, Tensor) and id(subject) in self.returned:
            read = self.flow.read.setdefault(self.returned[id(subject)][1], set())
            if isinstance(result, torch.Size):
                return _Sizes(result, read)
            read.add(int(args[1] if len(args) > 1 else (kwargs or {})["dim"]) % subject.dim())
            return result
        for leaf in pytree.tree_leaves((args, kwargs)):
            self.open(leaf)
            if id(leaf) in self.others:
                self.flow.touched.add(self.others[id(leaf)])
        return result


def _asked(func: Any) -> str:
    """The attribute that a getter is for, or the function's own name."""
    owner = getattr(func, "__self__", None)
    return getattr(owner if owner is not None and hasattr(owner, "__objclass__") else func, "__name__", "")


class _Sizes(tuple[int, ...]):
    """A shape that notes which of its entries are looked at. (`torch.Size` cannot be derived from.)"""

    read: set[int]

    def __new__(cls, sizes: torch.Size, read: set[int]) -> _Sizes:
        made = super().__new__(cls, sizes)
        made.read = read
        return made

    def note_all(self) -> tuple[int, ...]:
        self.read.update(range(len(self)))
        return torch.Size(tuple.__iter__(self))

    def numel(self) -> int:
        """Number of elements, as `torch.Size` gives it."""
        return math.prod(self.note_all())

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        self.read.update([chosen] if isinstance(chosen, int) else chosen)
        found = tuple.__getitem__(self, index)
        return torch.Size(found) if isinstance(index, slice) else found

    def __iter__(self) -> Iterator[int]:
        return iter(self.note_all())

    def __eq__(self, other: object) -> bool:
        return self.note_all() == other

    def __add__(self, other: Any) -> Any:
        return self.note_all() + other

    def __hash__(self) -> int:
        return hash(self.note_all())
