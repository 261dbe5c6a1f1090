"""What calibration data has said: sums for each group, which add up over processes and are saved without pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from prunus.errors import ConfigError
from prunus.files import open_file, shown, write_file

__all__ = ["Evidence"]

_FORMAT = "1"
Sums = dict[str, dict[str, dict[str, Tensor]]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Sums over calibration data, in float64.

    Attributes:
        architecture: hash of the model that they were taken on.
        samples: how many samples they are of.
        sums: key of a `Need` -> group -> layer -> (units, ...) sums.

    Example:
        >>> import torch, prunus
        >>> from prunus.criteria import NuclearNorm
        >>> from prunus.evidence import collect
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)).eval()
        >>> structure = prunus.analyze(net, torch.randn(2, 3, 8, 8))
        >>> halves = [collect(structure, NuclearNorm().needs, [torch.randn(8, 3, 8, 8)]) for _ in range(2)]
        >>> evidence = halves[0].merge(halves[1:])
        >>> evidence.samples
        16
        >>> made = prunus.plan(structure, method="nuclear_norm", ratio=0.5, data=evidence)
    """

    architecture: str
    samples: int = 0
    sums: Sums = field(default_factory=dict)

    def has(self, key: str, group: str) -> bool:
        """Whether there are such sums for a group."""
        return group in self.sums.get(key, {})

    def per_sample(self, key: str, group: str) -> dict[str, Tensor]:
        """Layer -> (units, ...) sums divided by the number of samples; empty where there are none."""
        return {
            layer: total / max(self.samples, 1)
            for layer, total in self.sums.get(key, {}).get(group, {}).items()
        }

    def merge(self, others: Iterable[Evidence]) -> Evidence:
        """The evidence of all samples, where each process took its share.

        Raises:
            ConfigError: they are of different models, or of different sums.
        """
        samples, sums = self.samples, {place: total.clone() for place, total in self._flat()}
        for other in others:
            if other.architecture != self.architecture:
                raise ConfigError("this evidence is of different models, which cannot be merged")
            theirs = dict(other._flat())
            if theirs.keys() != sums.keys():
                odd = sorted({key for key, _, _ in theirs.keys() ^ sums.keys()})
                raise ConfigError(
                    f"this evidence is of different sums ({', '.join(odd)}): collect it for the same criteria"
                )
            samples += other.samples
            for place, total in theirs.items():
                sums[place] += total
        return Evidence(self.architecture, samples, _nested(sums))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file, all or nothing.

        Raises:
            ConfigError: it cannot be written there.
        """
        places = list(self._flat())
        index = json.dumps([place for place, _ in places])
        about = {
            "prunus_evidence": _FORMAT,
            "architecture": self.architecture,
            "samples": str(self.samples),
            "index": index,
        }
        content = save({str(i): total.contiguous() for i, (_, total) in enumerate(places)}, about)
        write_file(Path(path), content, ConfigError, "evidence")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Evidence:
        """Read what `save` wrote.

        Raises:
            ConfigError: no such file, or no evidence.
        """
        open_file(Path(path), ConfigError).close()
        try:
            return _read(Path(path))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"the evidence {shown(path)} cannot be read: {error}") from error

    def _flat(self) -> Iterator[tuple[tuple[str, str, str], Tensor]]:
        for key, groups in self.sums.items():
            for group, layers in groups.items():
                for layer, total in layers.items():
                    yield (key, group, layer), total


def _read(path: Path) -> Evidence:
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        if about.get("prunus_evidence") != _FORMAT:
            raise ConfigError(f"{shown(path)} is no evidence that this prunus reads")
        places = [tuple(place) for place in json.loads(about["index"])]
        if not all(len(place) == 3 and all(isinstance(part, str) for part in place) for place in places):
            raise ValueError("it does not say of what its sums are")
        sums = {place: file.get_tensor(str(i)) for i, place in enumerate(places)}
    return Evidence(about["architecture"], int(about["samples"]), _nested(sums))


def _nested(flat: Mapping[tuple[str, str, str], Tensor]) -> Sums:
    sums: Sums = {}
    for (key, group, layer), total in flat.items():
        sums.setdefault(key, {}).setdefault(group, {})[layer] = total
    return sums


def added(sums: Sums, key: str, group: str, layer: str, more: Tensor) -> None:
    """Add to a sum in place; the first one becomes it."""
    layers = sums.setdefault(key, {}).setdefault(group, {})
    more = more.to("cpu", torch.float64)
    if layer in layers:
        layers[layer] += more
    else:
        layers[layer] = more
