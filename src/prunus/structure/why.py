"""Why the channels of a layer can or cannot go: the chain of statements from the layer to what decides."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from prunus.errors import ConfigError, printable
from prunus.structure.chains import Chains, Tie
from prunus.structure.groups import Group
from prunus.structure.labels import Place, Reason, compact, varying
from prunus.structure.naming import Member
from prunus.structure.source import code_of, module_of
from prunus.structure.value import Value

if TYPE_CHECKING:
    from prunus.structure.structure import Structure

_FACES = "along an axis where nothing can be removed"  # what such a reason ends with
_LISTED = 12


@dataclass(frozen=True)
class Step:
    """One step of a chain.

    Attributes:
        text: what happens there.
        node: the operator's name in the graph.
        module: path of the module in whose forward it is called; empty for the model's own.
        code: file, line and code.
    """

    text: str
    node: str = ""
    module: str = ""
    code: str = ""

    def __str__(self) -> str:
        where = [f"in {self.module}" if self.module else "", self.code]
        return ", ".join([self.text, *(part for part in where if part)])


@dataclass(frozen=True)
class Channels:
    """What one axis of a layer is part of.

    Attributes:
        what: which channels of the layer these are, such as "8 outputs".
        group: name of their group; None where they are no channels (positions, rows of a table).
        reason: why they cannot go, or None.
        chain: how they are tied to what holds them; empty for channels that can go.
        makers: other layers that make channels of the group, each with the chain from this layer to it.
        readers: layers that have the group's channels without making them.
        constraints: which choices of channels are allowed, in words.
    """

    what: str
    group: str | None
    reason: str | None
    chain: tuple[Step, ...] = ()
    makers: tuple[tuple[str, tuple[Step, ...]], ...] = ()
    readers: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """As text."""
        if self.reason is None:
            lines = [f"{self.what}: can be removed, as units of group {self.group!r}"]
        else:
            lines = [f"{self.what}: held; each {self.reason}"]
        lines += [f"  {i}. {step}" for i, step in enumerate(self.chain, 1)]
        for maker, chain in self.makers[:_LISTED]:
            lines.append(f"  with {maker}" + (":" if chain else ""))
            lines += [f"    {i}. {step}" for i, step in enumerate(chain, 1)]
        if len(self.makers) > _LISTED:
            lines.append(f"  and with {len(self.makers) - _LISTED} more layers")
        if self.readers:
            more = f" and {len(self.readers) - _LISTED} more" if len(self.readers) > _LISTED else ""
            lines.append(f"  read by {', '.join(self.readers[:_LISTED])}{more}")
        return lines + [f"  constraint: {text}" for text in self.constraints]

    def brief(self) -> list[str]:
        """As text, without how the makers are tied to each other."""
        if self.reason is not None:
            return replace(self, readers=()).lines()
        named = [maker for maker, _ in self.makers]
        more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        made = f", made by {', '.join(named[:_LISTED])}{more}" if named else ""
        return [f"{self.what}: can be removed, as units of group {self.group!r}{made}"]


@dataclass(frozen=True)
class Explanation:
    """Why the channels of a layer can or cannot go; `str` is made to be read."""

    layer: str
    channels: tuple[Channels, ...]

    def __str__(self) -> str:
        makes = [each for each in self.channels if "outputs" in each.what]
        lines = [self.layer]
        for each in self.channels:
            lines += [f"  {line}" for line in (each.lines() if each in makes or not makes else each.brief())]
        return printable("\n".join(lines))


def explain(structure: Structure, layer: str) -> Explanation:
    """The channels of a layer, a parameter or a group, its outputs first.

    Raises:
        ConfigError: there is no such layer; names similar ones.
    """
    return _Explaining(structure).run(layer)


class _Explaining:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.labels, self.units, self.captured = structure.labels, structure.units, structure.captured
        self.nodes = {node.name: node for node in self.captured.graph.nodes}
        self.places: dict[tuple[str, int], Place] = {}
        for place in self.labels.places:
            self.places[self.captured.names[place.placeholder], place.axis] = place
        self.produced = np.zeros(self.labels.count, bool)
        for made in self.labels.produced:
            self.produced[made] = True

    def run(self, layer: str) -> Explanation:
        parameters = self.parameters(layer)
        found: list[Channels] = []
        for group in self.structure.groups:
            mine = [m for m in group.members if m.parameter in parameters]
            mine.sort(key=lambda m: not m.produces)
            if mine:
                found.append(self.channels(group, mine[0]))
        if not found:
            found = [self.others(place) for (name, _), place in self.places.items() if name in parameters]
        found.sort(key=lambda each: "outputs" not in each.what)
        return Explanation(layer, tuple(found))

    def parameters(self, layer: str) -> set[str]:
        """Names of the parameters that belong to what was asked for, as the structure knows them."""
        known: dict[str, set[str]] = {}
        for name in self.captured.names.values():
            for alias in (name, *self.captured.aliases.get(name, ())):
                known.setdefault(alias, set()).add(name)
                known.setdefault(alias.rpartition(".")[0], set()).add(name)
        for group in self.structure.groups:
            known.setdefault(group.name, {m.parameter for m in group.members[:1]})
        known.pop("", None)
        if isinstance(layer, str) and layer in known:
            return known[layer]
        near = difflib.get_close_matches(str(layer), known, 3)
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"no layer, parameter or group {layer!r} in this model{hint}. `print(structure)` lists the layers."
        )

    # ------------------------------------------------------------------ one axis
    def channels(self, group: Group, member: Member) -> Channels:
        place = self.places[member.parameter, member.axis]
        start, unit = self.first_label(place, group)
        chains = Chains(self.labels, self.units, start)
        readers = tuple(m for m in group.modules if m not in group.producers and m != member.module)
        what = f"{group.size} {'rows of ' if group.outer else ''}{self.role(place)}"
        if group.held is not None:
            reason, chain = self.holding(chains, start)
            return Channels(what, group.name, reason or group.held, chain, readers=readers)
        others = [path for path in group.producers if path != member.module]
        makers = tuple((path, self.tied(chains, group, path, unit)) for path in others)
        return Channels(what, group.name, None, (), makers, readers, group.constraints)

    def others(self, place: Place) -> Channels:
        """An axis that is part of no group."""
        start = place.start
        held = int(self.units.held[self.units.of_label[start]])
        name = self.captured.names[place.placeholder]
        what = f"{place.size} positions along axis {place.axis} of {name}"
        if held < 0:
            return Channels(what, None, "counts a position that no layer makes")
        reason, chain = self.holding(Chains(self.labels, self.units, start), start)
        return Channels(what, None, reason, chain)

    def first_label(self, place: Place, group: Group) -> tuple[int, int]:
        """A label at a place, or of the row that removes it there, and the unit of the group that does."""
        at, owner = self.owned(place)
        inside = np.flatnonzero(np.isin(owner, group.units))[0]
        label, unit = int(at[inside]), int(owner[inside])
        mine = int(self.units.of_label[label])
        if mine == unit or self.units.locked[mine]:
            return label, unit
        return int(np.flatnonzero(self.units.of_label == unit)[0]), unit

    def owned(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a place, each with every unit that removes it."""
        span = np.arange(place.start, place.start + place.size)
        at, owner = self.units.control.owners(self.units.of_label[span])
        return span[at], owner

    def role(self, place: Place) -> str:
        if self.produced[place.start : place.start + place.size].any():
            return "outputs"
        return "inputs" if self.captured.tensors[place.placeholder].dim() > 1 else "channels"

    # ------------------------------------------------------------------ chains
    def holding(self, chains: Chains, start: int) -> tuple[str, tuple[Step, ...]]:
        """Why the unit of a label is held, and the chain to what says so."""
        unit = int(self.units.of_label[start])
        held = int(self.units.held[unit])
        if held < 0:  # it leaves only with rows that are held
            owners = self.units.slab[self.units.member == unit]
            held = next((int(self.units.held[o]) for o in owners if self.units.held[o] >= 0), -1)
        if held < 0:
            return "", ()
        reason = self.units.reasons[held]
        targets = [labels for labels, known in self.labels.holds if known is reason]
        end = chains.nearest(np.concatenate([np.zeros(0, int), *targets]))
        steps = [] if end is None else [self.step(tie) for tie in chains.to(end)]
        return reason.text, (*steps, *self.ending(reason))

    def tied(self, chains: Chains, group: Group, path: str, unit: int) -> tuple[Step, ...]:
        """From the start to what another layer makes of the same unit; empty if it makes others only."""
        targets = [np.zeros(0, int)]
        for member in group.members:
            if member.module == path and member.produces:
                at, owner = self.owned(self.places[member.parameter, member.axis])
                targets.append(at[owner == unit])
        end = chains.nearest(np.concatenate(targets))
        return () if end is None else tuple(self.step(tie) for tie in chains.to(end))

    def step(self, tie: Tie) -> Step:
        name = self.name_of(tie.label)
        text = {
            "same": f"tied to {name}",
            "row": "in one row or column",
            "part": f"with {name}",
        }[tie.kind]
        return self.at(tie.node, text)

    def at(self, name: str, text: str) -> Step:
        node = self.nodes.get(name)
        if node is None or node.op in ("placeholder", "output"):
            return Step(f"{text} by the {node.op}" if node is not None else text, name)
        return Step(f"{text} by {node.target} ({name})", name, module_of(node), code_of(node))

    def name_of(self, label: int) -> str:
        place = next((p for p in self.labels.places if p.start <= label < p.start + p.size), None)
        if place is None:
            return "what comes out"
        name = self.captured.names[place.placeholder]
        return f"the {self.role(place)} of {name.rpartition('.')[0] or name}"

    def ending(self, reason: Reason) -> list[Step]:
        """What holds, and where the other side became solid if that is why."""
        if reason.node is None:
            return []
        steps = [self.at(reason.node, "held")]
        if reason.text.endswith(_FACES) and reason.node in self.nodes:
            held = np.concatenate([labels for labels, known in self.labels.holds if known is reason])
            steps += self.solid_side(self.nodes[reason.node], held)
        return steps

    def solid_side(self, node: fx.Node, held: np.ndarray) -> list[Step]:
        """Upstream of operands without the held labels: the first operator that made its result solid, or the input."""
        holds = {reason.node: reason for _, reason in self.labels.holds if not reason.text.endswith(_FACES)}
        todo = [each for each in node.all_input_nodes if not np.isin(held, self.labels_of(each)).any()]
        seen: set[fx.Node] = set()
        inputs: list[Step] = []
        while todo:
            each = todo.pop(0)
            if each in seen:
                continue
            seen.add(each)
            if each.name in holds and not len(self.labels_of(each)):
                return [self.at(each.name, f"the other side {holds[each.name].text}; this is said")]
            if each.op == "placeholder" and each.name in self.captured.inputs:
                inputs.append(Step(f"the other side comes from the model's input {each.name}", each.name))
            todo += each.all_input_nodes
        return inputs[:1]

    def labels_of(self, node: fx.Node) -> np.ndarray:
        """All labels along the axes of a value."""
        value: Any = self.structure.values.get(node.name)
        tracks = value.tracks if isinstance(value, Value) else ()
        return np.concatenate([np.zeros(0, int), *(compact(t, varying(t)).numpy().ravel() for t in tracks)])
