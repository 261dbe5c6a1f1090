"""From options on the command line to a plan, for every command that decides."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from prunus.cli import options
from prunus.cli.progress import watched
from prunus.criteria import Options
from prunus.evidence.files import FileData
from prunus.plan import Plan
from prunus.recovery import Checkpoint
from prunus.structure import LayerTable, Structure

__all__ = ["Wanted", "asked"]


@dataclass(frozen=True)
class Wanted:
    """What the options say.

    Attributes:
        method: name of the criterion, or None for the one that suits the data.
        goal: one of target, ratio and table, by name; empty where nothing is to be decided.
        allocation: name of the allocator, or None.
        options: of scores and rounding, or None for those that suit the method.
        hold, multiple_of, seed: see `prunus.plan`.
        data: file or folder of calibration data.
        batch: samples in a batch.
    """

    method: str | None
    goal: dict[str, Any]
    allocation: str | None
    options: Options | None
    hold: tuple[str, ...]
    multiple_of: int
    seed: int
    data: Path | None
    batch: int

    def plan(self, structure: Structure, noted: Checkpoint | None = None) -> Plan:
        """Decide what stays; says how far it is where data is looked at.

        Args:
            structure: of the model.
            noted: where what the data says is noted.

        Raises:
            PrunusError: see `prunus.plan`.
        """
        from prunus.decide import plan

        data, method = self.batches, self.criterion
        with watched("Deciding what stays") as progress:
            return plan(
                structure,
                method=method,
                allocation=self.allocation,
                options=self.options,
                hold=self.hold,
                multiple_of=self.multiple_of,
                seed=self.seed,
                data=noted.evidence(structure, method, None, progress) if noted else data,
                progress=progress,
                **self.goal,
            )

    @cached_property
    def batches(self) -> FileData | None:
        """The calibration data, if there is any.

        Raises:
            SourceError: it cannot be read.
        """
        return None if self.data is None else FileData(self.data, self.batch)

    @property
    def criterion(self) -> Any:
        """What decides, the one that suits the data where none is named."""
        return options.method_of(self.method or ("l2" if self.data is None else "obs"), self.seed)

    def check(self) -> None:
        """Refuse what makes no sense before a model is opened.

        Raises:
            PrunusError: all problems at once.
        """
        from prunus.request import Problems, requested

        problems = Problems()
        goal = {"target": None, "ratio": None, "table": None, **self.goal}
        asked = {"floors": None, "loss": None, "progress": None, **goal}
        requested(
            problems,
            method=self.criterion,
            allocation=self.allocation,
            options=self.options,
            hold=self.hold,
            multiple_of=self.multiple_of,
            seed=self.seed,
            data=problems.of(lambda: self.batches),
            **asked,
        )
        problems.settle()


def goal_of(
    channels: float | None,
    params: float | None,
    macs: float | None,
    size: float | None,
    ratio: float | None,
    method: str | None = None,
) -> dict[str, Any]:
    """The one target, or the ratio, that was given; none where the method says itself what stays.

    Raises:
        typer.BadParameter: None or several are given.
    """
    if method == "dead" and (channels, params, macs, size, ratio) == (None,) * 5:
        return {}
    if ratio is None:
        return {"target": options.target_of(channels, params, macs, size)}
    if (channels, params, macs, size) != (None,) * 4:
        raise typer.BadParameter(
            "a ratio says what leaves, the others what stays: give one.", param_hint="--ratio"
        )
    return {"ratio": ratio}


def table_of(path: Path) -> dict[str, Any]:
    """The table that was edited.

    Raises:
        ConfigError: it cannot be read.
    """
    return {"table": LayerTable.from_csv(path)}


def asked(made: Plan) -> str:
    """Method, target, ratio and allocation of a plan, in a few words."""
    said = [f"{unit}={fraction:g}" for unit, fraction in made.target.items()]
    said += [f"{made.allocation} allocation"] if made.allocation != "manual" else ["numbers given by hand"]
    return ", ".join([made.method, *said])
