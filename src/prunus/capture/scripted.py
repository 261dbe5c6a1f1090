"""TorchScript modules inside of a model, as modules that can be followed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

__all__ = ["Scripted", "scripted_paths", "without_scripts"]


class Scripted(nn.Module):
    """A TorchScript module with its parameters and buffers in plain modules of the same names.

    torch.export replaces the tensors of plain modules by fake ones, and follows what the script's interpreter does with them. It
    cannot do either inside of a TorchScript module.

    Args:
        script: The module. It runs in the mode of this one, and is left as found.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.__dict__["_script"] = script  # not a submodule: its tensors are already here
        self.training = script.training
        for name, tensor in _tensors(script).items():
            path, _, attribute = name.rpartition(".")
            holder = _descend(self, path)
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(attribute, tensor)
            else:
                holder.register_buffer(attribute, tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the script computes with the tensors that are here now."""
        script = self.__dict__["_script"]
        mine = _tensors(self)
        with _holding(script, mine, self.training), optimized_execution(False):
            # not the module itself, whose calls are followed by torch.export, which cannot find it in the model
            return script._c._get_method("forward")(*args, **kwargs)


def scripted_paths(model: nn.Module) -> list[str]:
    """Where TorchScript is inside of a model."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, Scripted | torch.jit.ScriptModule)
    ]


def without_scripts(model: nn.Module) -> nn.Module:
    """The model with `Scripted` in place of TorchScript modules; itself where there are none.

    Modules around them are copied, and share their tensors and all other modules with the user's.
    """
    return (
        _replaced(model, {}) if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()) else model
    )


def _replaced(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    if isinstance(module, torch.jit.ScriptModule):
        done[id(module)] = Scripted(module)
        return done[id(module)]
    done[id(module)] = module
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        made = done[id(module)] = type(module).__new__(type(module))
        modules = {name: child and _replaced(child, done) for name, child in module._modules.items()}
        made.__dict__.update(module.__dict__, _modules=modules)
    return done[id(module)]


def _tensors(script: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(script.named_parameters(remove_duplicate=False)),
        **dict(script.named_buffers(remove_duplicate=False)),
    }


def _descend(root: nn.Module, path: str) -> nn.Module:
    for name in path.split(".") if path else ():
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name]  # type: ignore[assignment]
    return root


@contextmanager
def _holding(script: torch.jit.ScriptModule, tensors: dict[str, Tensor], training: bool) -> Iterator[None]:
    """Let a script compute with other tensors, in another mode."""
    own, modes = _tensors(script), [(module, module.training) for module in script.modules()]
    changed = [name for name, tensor in own.items() if tensors[name] is not tensor]

    def put(name: str, tensor: Tensor) -> None:
        *path, attribute = name.split(".")
        functools.reduce(getattr, path, script)._c.setattr(attribute, tensor)  # type: ignore[union-attr]

    try:
        for name in changed:
            put(name, tensors[name])
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for name in changed:
            put(name, own[name])
        for module, mode in modes:
            module.training = mode
