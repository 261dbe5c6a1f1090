"""Decide which calls of a graph become nn modules, and at which path."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import fx

import prunus.surgery.modules
import prunus.surgery.parameter_free  # noqa: F401  both register their recipes
from prunus.capture import Captured
from prunus.surgery.attention import attention_recipes
from prunus.surgery.recipe import Recipe, find_recipe

__all__ = ["Placement", "module_path", "place_modules"]

_PARAMETERS = frozenset({"weight", "bias"})


@dataclass(frozen=True)
class Placement:
    """Modules to build and the calls that they serve.

    Attributes:
        modules: Path -> how to build the module there.
        calls: Call in the graph -> path of the module that takes it over, and its recipe.
    """

    modules: dict[str, Recipe]
    calls: dict[fx.Node, tuple[str, Recipe]]


def place_modules(small: Captured) -> Placement:
    """Find the calls that nn modules at the original paths can take over; the others stay calls of functions.

    A layer with weights is placed where its weights are: at ``p`` when they are called ``p.weight``,
    ``p.bias``... A layer without weights is placed at the path of the module that made the call, if it did
    nothing else.
    """
    recipes = {node: recipe for node in small.graph.nodes if (recipe := find_recipe(node)) is not None}
    recipes |= attention_recipes(small, module_path)
    modules: dict[str, Recipe] = {}
    calls: dict[fx.Node, tuple[str, Recipe]] = {}
    names = _all_names(small)
    candidates = {
        node: _weight_paths(small, names, recipe) for node, recipe in recipes.items() if recipe.weights
    }

    def claim(node: fx.Node, path: str) -> None:
        recipe = recipes[node]
        if node not in calls and modules.setdefault(path, recipe).key == recipe.key:
            calls[node] = path, recipe

    # a tied weight has several paths: each call first takes the one that it was made from
    for node, paths in candidates.items():
        if module_path(node) in paths:
            claim(node, module_path(node))
    for node, paths in candidates.items():
        for path in paths:
            claim(node, path)
    for node, path in _leaf_calls(small, recipes).items():
        claim(node, path)
    taken = _taken_names(small, modules)
    for node, recipe in recipes.items():
        if recipe.always and not recipe.weights and node not in calls:
            claim(node, _free_name(module_path(node), recipe, taken))
    return Placement(modules, calls)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _weight_paths(small: Captured, all_names: set[str], recipe: Recipe) -> tuple[str, ...]:
    """Paths at which all operands have the names that the module gives them."""
    found: list[tuple[str, ...]] = []
    for attribute, operand in recipe.weights.items():
        expected = "parameter" if attribute in _PARAMETERS else "buffer"
        if small.kinds.get(operand.name) != expected:
            return ()
        name = small.names[operand.name]
        aliases = (name, *small.aliases.get(name, ()))
        found.append(tuple(n.removesuffix(f".{attribute}") for n in aliases if n.endswith(f".{attribute}")))
    in_the_way = _other_attributes(recipe.cls, frozenset(recipe.weights), recipe)
    return tuple(
        path
        for path in found[0]
        if all(path in paths for paths in found)
        and not any(f"{path}.{attribute}" in all_names for attribute in in_the_way)
    )


_OTHER_ATTRIBUTES: dict[tuple[type, frozenset[str]], frozenset[str]] = {}


def _other_attributes(cls: type, weights: frozenset[str], recipe: Recipe) -> frozenset[str]:
    """Attributes that modules of a class have for other ends: no tensor can have such a name."""
    if (cls, weights) not in _OTHER_ATTRIBUTES:
        own = {name for name in dir(recipe.build()) if not name.startswith("__")}
        _OTHER_ATTRIBUTES[cls, weights] = frozenset(own - weights - {"num_batches_tracked"})
    return _OTHER_ATTRIBUTES[cls, weights]


def _all_names(small: Captured) -> set[str]:
    return set(small.names.values()).union(*small.aliases.values())


def _leaf_calls(small: Captured, recipes: dict[fx.Node, Recipe]) -> dict[fx.Node, str]:
    """Calls without weights that are all that some module without tensors and submodules does."""
    by_path: dict[str, list[fx.Node]] = defaultdict(list)
    inner = _prefixes(_all_names(small))
    for node in small.graph.nodes:
        if node.op == "call_function":
            path = module_path(node)
            by_path[path].append(node)
            inner |= _prefixes({path})
    leaves: dict[fx.Node, str] = {}
    for path, nodes in by_path.items():
        found = [recipes.get(node) for node in nodes]
        keys = {recipe.key if recipe is not None and not recipe.weights else None for recipe in found}
        if path and path not in inner and len(keys) == 1 and None not in keys:
            leaves.update(dict.fromkeys(nodes, path))
    return leaves


def _prefixes(names: set[str]) -> set[str]:
    """Every proper prefix of dotted names."""
    found: set[str] = set()
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            if name in found:
                break
            found.add(name)
    return found


def _taken_names(small: Captured, modules: dict[str, Any]) -> set[str]:
    names = _all_names(small) | set(modules) | {module_path(node) for node in small.graph.nodes}
    return names | _prefixes(names)


def _free_name(parent: str, recipe: Recipe, taken: set[str]) -> str:
    base = recipe.cls.__name__.lower()
    stem = f"{parent}.{base}" if parent else base
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name
