"""Models by a word on the command line."""

import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn
from torch.export import ExportedProgram

from prunus.cli.progress import note, step
from prunus.cli.shapes import inputs_of
from prunus.errors import SourceError
from prunus.files import PICKLES, shown
from prunus.inputs import Inputs

__all__ = ["Opened", "note_random_weights", "open_source"]

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_KINDS = (
    "timm:NAME, torchvision:NAME, package.module:factory, a .pt2 file, or a folder that prunus has written"
)


@dataclass
class Opened:
    """A model that was named on the command line.

    Attributes:
        name: As it was named.
        model: A module, or the program in a ``.pt2`` file.
        example_inputs: How to call it; None where the program knows, or nobody does.
        random_weights: Nobody has trained it.
    """

    name: str
    model: Any
    example_inputs: Any = None
    random_weights: bool = False


def open_source(
    source: str,
    shapes: Sequence[str] = (),
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    needs_inputs: bool = True,
) -> Opened:
    """The model that a word on the command line means.

    Args:
        source: One of the kinds that the help lists.
        shapes: Shapes of the inputs, instead of those that the source knows.
        weights: A file with weights to load.
        pretrained: Let the model zoo fetch its weights.
        seed: Of random weights and random inputs.
        needs_inputs: Refuse a source that does not say how it is called.

    Raises:
        typer.BadParameter: No known kind of source, or options that do not go with it.
        SourceError: There is no such model, or it cannot be built.
    """
    given = inputs_of(shapes, seed) if shapes else None
    kind, opener = _opener_of(source)
    if pretrained and kind not in ("timm", "torchvision"):
        raise typer.BadParameter("only timm: and torchvision: can fetch weights.", param_hint="--pretrained")
    if pretrained and weights is not None:
        raise typer.BadParameter("either fetched weights or your own.", param_hint="--pretrained / --weights")
    if weights is not None and kind == "pt2":
        raise typer.BadParameter("a .pt2 file has its own weights.", param_hint="--weights")
    torch.manual_seed(seed)
    with step(f"Opening {source}"):
        opened = opener(source, pretrained)
        if weights is not None:
            _load(opened.model, weights)
            opened.random_weights = False
    opened.example_inputs = given if given is not None else opened.example_inputs
    if needs_inputs and opened.example_inputs is None and _asks_for_inputs(opened.model):
        raise typer.BadParameter(
            f"{source} does not say how it is called; give the shape of each input.", param_hint="--input"
        )
    return opened


def _asks_for_inputs(model: Any) -> bool:
    return not isinstance(model, ExportedProgram) or model.example_inputs is None


def note_random_weights(opened: Opened) -> None:
    """Say that there is nothing in the weights that could be kept."""
    if opened.random_weights:
        note(f"{opened.name} has random weights; pass --pretrained or --weights FILE for trained ones.")


def _opener_of(source: str) -> tuple[str, Callable[[str, bool], Opened]]:
    zoo = source.partition(":")[0]
    if zoo == "timm":
        return zoo, _from_timm
    if zoo == "torchvision":
        return zoo, _from_torchvision
    if os.path.isdir(source):
        return "artefact", _from_artefact
    if Path(source).suffix.lower() in (".pt2", *PICKLES):
        return "pt2", _from_file
    if _FACTORY.fullmatch(source):
        return "factory", _from_factory
    raise typer.BadParameter(f"{source!r} is no kind of model: give {_KINDS}.", param_hint="SOURCE")


# --- files


def _from_artefact(source: str, pretrained: bool) -> Opened:
    from prunus.artefact import open_artefact

    model, captured = open_artefact(source)
    return Opened(source, model, captured.example)


def _from_file(source: str, pretrained: bool) -> Opened:
    from prunus.capture.pt2 import load_program

    return Opened(source, load_program(source))


def _load(model: nn.Module, path: Path) -> None:
    """Load weights that fit the model exactly."""
    from prunus.artefact import load_weights

    found, own = load_weights(path), model.state_dict()
    missing, strange = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    problems = [
        *([f"it lacks {_listed(missing)}"] if missing else []),
        *([f"it has {_listed(strange)}, which the model has not"] if strange else []),
        *([_listed(shapes)] if shapes else []),
    ]
    if problems:
        raise SourceError(f"{shown(path)} does not fit the model: {'; '.join(problems)}.")
    model.load_state_dict(found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- model zoos


def _from_timm(source: str, pretrained: bool) -> Opened:
    timm = _package("timm", source)
    name = source.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown(source, name, timm.list_models())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _built(source, lambda: timm.create_model(name, pretrained=pretrained))
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return Opened(source, model.eval(), _image(size) if size else None, random_weights=not pretrained)


def _from_torchvision(source: str, pretrained: bool) -> Opened:
    _package("torchvision", source)
    from torchvision import models

    name = source.partition(":")[2]
    if name not in models.list_models():
        raise _unknown(source, name, models.list_models())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _built(source, lambda: models.get_model(name, weights="DEFAULT" if pretrained else None))
    return Opened(source, model.eval(), _image(_crop(models, name)), random_weights=not pretrained)


def _crop(models: Any, name: str) -> tuple[int, ...]:
    """Channels, frames of a video, height and width that the trained weights were made for."""
    weights = list(models.get_model_weights(name))
    size = getattr(weights[0].transforms(), "crop_size", None) if weights else None
    sides = [224] if size is None else [size] if isinstance(size, int) else list(size)
    height, width = sides[0], sides[-1]
    is_video = models.get_model_builder(name).__module__.startswith("torchvision.models.video")
    return (3, 16, height, width) if is_video else (3, height, width)


def _image(size: Sequence[int]) -> Inputs:
    return Inputs((torch.randn(1, *size, generator=torch.Generator().manual_seed(0)),))


def _package(name: str, source: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise SourceError(f"{source} needs {name}: pip install 'prunus[vision]'.")
    return importlib.import_module(name)


def _unknown(source: str, name: str, known: Sequence[str]) -> SourceError:
    near = difflib.get_close_matches(name, known, 3)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return SourceError(f"{source.partition(':')[0]} has no model {name!r}.{hint}")


# --- the user's own code


def _from_factory(source: str, pretrained: bool) -> Opened:
    module_name, _, attribute = source.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: Any = _imported(source, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SourceError(f"{module_name} has no {attribute}.{hint}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        found = _built(source, found)
    model, example = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"{source} gives a {type(model).__name__}; expected a torch.nn.Module, or a pair of a module and "
            "its example inputs."
        )
    return Opened(source, model, example)


def _imported(source: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise SourceError(
                f"There is no module {error.name}, neither installed nor in {Path.cwd()} (for {source})."
            ) from error
        raise SourceError(f"{source} cannot be imported: {error}\n{_place(error)}") from error
    except Exception as error:
        raise SourceError(
            f"{source} cannot be imported: {type(error).__name__}: {error}\n{_place(error)}"
        ) from error


def _built(source: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:
        raise SourceError(
            f"{source} cannot be built: {type(error).__name__}: {error}\n{_place(error)}"
        ) from error


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"  at {last.filename}:{last.lineno}: {last.line}"
