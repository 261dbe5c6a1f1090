"""Layers as the user names them: paths, their beginnings, globs, modules themselves, and classes of modules."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from prunus.errors import ConfigError

__all__ = ["checked_patterns", "matches", "paths_of"]


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern is this path, the beginning of it, or a glob that fits."""
    return path == pattern or path.startswith(f"{pattern}.") or fnmatchcase(path, pattern)


def checked_patterns(given: object, option: str) -> tuple[Any, ...]:
    """Patterns, modules and classes of modules, one or several, in a tuple.

    Raises:
        ConfigError: anything else among them; all of it at once.
    """
    if given is None:
        return ()
    one = isinstance(given, str | type | nn.Module)
    listed = tuple(given) if isinstance(given, Iterable) and not one else (given,)
    odd = [each for each in listed if not _is_pattern(each)]
    if odd:
        raise ConfigError(
            f"{option} names {', '.join(repr(each)[:60] for each in odd[:3])}: say paths of layers, their beginnings, globs, "
            "modules of the model, or classes such as nn.Conv2d"
        )
    return listed


def _is_pattern(each: Any) -> bool:
    if isinstance(each, type):
        return issubclass(each, nn.Module)
    return isinstance(each, nn.Module) or (isinstance(each, str) and bool(each))


def paths_of(model: nn.Module | None, given: Iterable[Any], option: str) -> tuple[str, ...]:
    """Patterns as they are, and the paths of modules and of all modules of a class.

    Raises:
        ConfigError: modules that are not in the model, or classes of which it has none; all of them at once.
    """
    found: list[str] = []
    missing = []
    for each in given:
        paths = [each] if isinstance(each, str) else _paths(model, each)
        if not paths:
            said = f"no {each.__name__}" if isinstance(each, type) else f"not this {type(each).__name__}"
            missing.append(said)
        found += paths
    if missing:
        where = "an exported program, which has no modules" if model is None else "the model"
        raise ConfigError(
            f"{option}: there is {' and '.join(missing)} in {where}: name layers by their paths"
        )
    return tuple(dict.fromkeys(found))


def _paths(model: nn.Module | None, wanted: nn.Module | type) -> list[str]:
    every = model.named_modules(remove_duplicate=False) if model is not None else ()
    return [
        path or "*"
        for path, module in every
        if module is wanted or (isinstance(wanted, type) and type(module) is not nn.Module and isinstance(module, wanted))
    ]  # fmt: skip
