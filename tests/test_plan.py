"""Plans are plain data: written and read without loss, distrusted when read, and bound to an architecture."""

import copy
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import PlanError
from prunus.plan import MAX_BYTES
from tests.allocation.nets import Residual, layers, network

TARGET = prunus.Target(params=0.6)


def planned(name: str = "residual") -> tuple[nn.Module, torch.Tensor, prunus.Plan]:
    model, x = network(name)
    return model, x, prunus.plan(prunus.analyze(model, x), target=TARGET, seed=7)


# --- there and back


@pytest.mark.parametrize("name", ["residual", "packed attention", "language", "linear"])
def test_a_plan_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    model, _, made = planned(name)
    assert made.groups and made.seed == 7 and made.target == {"params": 0.6}
    made.save(tmp_path / "plan.json")
    again = prunus.Plan.load(tmp_path / "plan.json")
    assert again == made == prunus.Plan.from_json(made.to_json())
    assert [type(i) for g in again.groups for i in g.keep] == [int] * sum(len(g.keep) for g in again.groups)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]
    prunus.apply(model, again)  # without example inputs: the plan describes them


def test_the_json_names_what_a_reader_looks_for() -> None:
    _, _, made = planned()
    content = json.loads(made.to_json())
    assert content["prunus_plan"] == 1 and content["method"] == "l2"
    (entry,) = [g for g in content["groups"] if g["name"] == "conv1"]
    assert entry["size"] == 12 and entry["keep"] == sorted(entry["keep"])
    assert ["conv1.weight", 0] in entry["members"] and ["conv2.weight", 1] in entry["members"]


def test_a_plan_says_what_it_keeps() -> None:
    structure = prunus.analyze(*network("residual"))
    made = prunus.plan(structure, target=prunus.Target(channels=0.5))
    assert {name: len(keep) for name, keep in made.keep.items()} == {"add": 4, "conv1": 6}


# --- what is no plan


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    content = {
        "prunus_plan": 1,
        "architecture": "a" * 64,
        "groups": [{"name": "conv1", "size": 4, "keep": [0, 2], "members": [["conv1.weight", 0]]}],
        "inputs": {},
        "method": "l2",
        "target": {"macs": 0.5},
        "keep_class": False,
        "seed": 0,
    }
    prunus.Plan.from_json(json.dumps(content))  # whole as it is
    change(content)
    return json.dumps(content)


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["groups"][0]


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda c: c.update(prunus_plan=2), "format version 2; this prunus reads version 1"),
    "version as text": (lambda c: c.update(prunus_plan="1"), "format version '1'"),
    "version as truth": (lambda c: c.update(prunus_plan=True), "format version True"),
    "other": (lambda c: c.pop("prunus_plan"), "it has no entry 'prunus_plan'"),
    "unknown entry": (lambda c: c.update(keeep=1), "the plan has an unknown entry 'keeep'"),
    "unknown in a group": (
        lambda c: first(c).update(remove=[]),
        "group 'conv1' has an unknown entry 'remove'",
    ),
    "no architecture": (lambda c: c.pop("architecture"), "the plan has no entry 'architecture'"),
    "no groups": (lambda c: c.pop("groups"), "the plan has no entry 'groups'"),
    "no keep": (lambda c: first(c).pop("keep"), "group 'conv1' has no entry 'keep'"),
    "no name": (lambda c: first(c).pop("name"), "group 0 has no entry 'name'"),
    "groups by name": (lambda c: c.update(groups={}), "entry 'groups' of the plan is dict, not a list"),
    "a group as text": (lambda c: c.update(groups=["conv1"]), "group 0 is str, not an object"),
    "size as text": (
        lambda c: first(c).update(size="4"),
        "entry 'size' of group 'conv1' is str, not a whole",
    ),
    "keep as number": (lambda c: first(c).update(keep=2), "entry 'keep' of group 'conv1' is int, not a list"),
    "architecture": (
        lambda c: c.update(architecture=1),
        "entry 'architecture' of the plan is int, not a text",
    ),
    "keep_class": (
        lambda c: c.update(keep_class="no"),
        "entry 'keep_class' of the plan is str, not true or f",
    ),
    "seed": (lambda c: c.update(seed=1.5), "entry 'seed' of the plan is float, not a whole number"),
    "seed as truth": (lambda c: c.update(seed=True), "entry 'seed' of the plan is bool, not a whole number"),
    "inputs": (lambda c: c.update(inputs=[]), "entry 'inputs' of the plan is list, not an object"),
    "target": (lambda c: c.update(target={"macs": "half"}), "target 'macs' is 'half', not a number"),
    "target NaN": (lambda c: c.update(target={"macs": float("nan")}), "NaN is no number of JSON"),
    "target of many digits": (lambda c: c.update(target={"macs": 10**400}), "not a number"),
    "name of a group": (lambda c: first(c).update(name=[]), "entry 'name' of group [] is list, not a text"),
    "member": (
        lambda c: first(c).update(members=[[0]]),
        "a member of group 'conv1' is [0], not a parameter's",
    ),
    "out of range": (
        lambda c: first(c).update(keep=[4]),
        "conv1: index 4 is out of range; it has 4 channels",
    ),
    "negative": (lambda c: first(c).update(keep=[-4]), "conv1: index -4 is out of range"),
    "repeated": (lambda c: first(c).update(keep=[1, 2, 1]), "conv1: index 1 is listed twice"),
    "fraction": (lambda c: first(c).update(keep=[0.5]), "conv1: indices are whole numbers, got [0.5]"),
    "text": (lambda c: first(c).update(keep=["0"]), "conv1: indices are whole numbers, got ['0']"),
    "truth": (lambda c: first(c).update(keep=[True]), "conv1: indices are whole numbers, got [True]"),
    "negative size": (lambda c: first(c).update(size=-1), "conv1: index 0 is out of range; it has -1"),
    "twice": (lambda c: c["groups"].append(first(c)), "group 'conv1' appears twice"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_plan_says_what_is_wrong(how: str) -> None:
    change, said = TAMPERED[how]
    with pytest.raises(PlanError) as caught:
        prunus.Plan.from_json(changed(change))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_messages_are_all_different() -> None:
    texts = []
    for change, _ in TAMPERED.values():
        with pytest.raises(PlanError) as caught:
            prunus.Plan.from_json(changed(change))
        texts.append(str(caught.value))
    assert len(set(texts)) == len(TAMPERED)


def test_all_that_is_wrong_is_said_at_once() -> None:
    def spoil(content: dict[str, Any]) -> None:
        content.update(seed="x", extra=1)
        first(content)["keep"] = [9]

    with pytest.raises(PlanError) as caught:
        prunus.Plan.from_json(changed(spoil))
    text = str(caught.value)
    assert "'seed'" in text and "'extra'" in text and "conv1: index 9" in text


@pytest.mark.parametrize("text", ["", "{", '{"prunus_plan": 1', "plan", "[" * 100_000, "1" * 5000])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(PlanError, match="this is no plan: it is not valid JSON"):
        prunus.Plan.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"prunus_plan"', "{}"])
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(PlanError, match="this is no plan: it has no entry 'prunus_plan'"):
        prunus.Plan.from_json(text)


# --- files


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "plan.json", f"no plan at {tmp_path}/plan.json"),
        (tmp_path, f"{tmp_path} is not a file."),
        (tmp_path / "a\0b", "a character that no name can have"),
        (tmp_path / ("a" * 300), "the name is too long"),
    ]:
        with pytest.raises(PlanError) as caught:
            prunus.Plan.load(path)
        assert words in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(PlanError, match=r"has 268,435,457 bytes: too large for a plan"):
        prunus.Plan.load(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(PlanError, match="is no plan: it is not text"):
        prunus.Plan.load(path)


def test_a_plan_cut_short_is_refused(tmp_path: Path) -> None:
    _, _, made = planned()
    path = tmp_path / "plan.json"
    path.write_text(made.to_json()[:-40])
    with pytest.raises(PlanError, match="it is not valid JSON"):
        prunus.Plan.load(path)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    _, _, made = planned()
    with pytest.raises(PlanError, match=r"the plan cannot be written to .*plan\.json: No such file"):
        made.save(tmp_path / "none" / "plan.json")


def test_a_failed_save_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, made = planned()
    path = tmp_path / "plan.json"
    made.save(path)
    before = path.read_text()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PlanError, match="No space left on device"):
        dataclasses.replace(made, seed=8).save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


# --- applied


@pytest.mark.parametrize("name", ["residual", "separable", "linear"])
def test_a_plan_gives_the_same_again(name: str, tmp_path: Path) -> None:
    model, x, made = planned(name)
    once = prunus.apply(model, made)
    made.save(tmp_path / "plan.json")
    fresh = copy.deepcopy(model)
    again = prunus.apply(fresh, prunus.Plan.load(tmp_path / "plan.json"))
    assert type(once.model) is type(again.model) is type(model)
    assert once.report.form == again.report.form == "class"
    with torch.no_grad():
        assert torch.equal(once.model(x), again.model(x))
    assert once.plan == again.plan


def test_a_plan_does_for_other_weights() -> None:
    model, x, made = planned()
    other = Residual().eval()
    result = prunus.apply(other, made)
    kept = list(made.keep["conv1"])
    assert torch.equal(result.model.get_parameter("bn1.weight"), other.get_parameter("bn1.weight")[kept])
    assert result.report.after == prunus.apply(model, made).report.after
    with torch.no_grad():
        assert result.model(x).shape == other(x).shape


def test_the_architecture_does_not_depend_on_weights_or_batch() -> None:
    made = [
        prunus.plan(prunus.analyze(Residual().eval(), torch.randn(batch, 3, 8, 8)), target=TARGET)
        for batch in (1, 2, 5)
    ]
    assert len({m.architecture for m in made}) == 1
    assert len({m.keep["conv1"] for m in made}) > 1, "the choice does depend on them"
    other = prunus.plan(prunus.analyze(layers(3, 9, 2), torch.randn(2, 3)), target=TARGET)
    assert other.architecture != made[0].architecture


def test_a_plan_for_another_architecture_is_refused() -> None:
    x = torch.randn(3, 4)
    made = prunus.plan(prunus.analyze(layers(4, 10, 9, 2), x), target=TARGET)
    with pytest.raises(PlanError) as caught:
        prunus.apply(layers(4, 12, 9, 2), made)
    assert str(caught.value) == (
        "this plan was made for another architecture (0 has 12 channels here, 10 in the plan). "
        "Make a new one with prunus.plan. If it is of a later round, made for what an earlier plan leaves, do both at once: "
        "apply(model, first.followed_by(second))."
    )
    with pytest.raises(PlanError, match=r"another architecture \(no group '0'; no group '2'\)"):
        prunus.apply(nn.Sequential(OrderedDict(a=layers(4, 10, 9, 2))), made)
    activated = layers(4, 10, 9, 2)
    activated.register_module("1", nn.GELU())
    with pytest.raises(PlanError, match=r"another architecture \(operators or constants differ\)"):
        prunus.apply(activated, made)


def test_a_size_that_was_changed_does_not_fit() -> None:
    model, _, made = planned("linear")
    group = dataclasses.replace(made.groups[0], size=made.groups[0].size + 1)
    with pytest.raises(PlanError, match=r"the plan does not fit the model: 0 has 16 units here, 17 in the"):
        prunus.apply(model, dataclasses.replace(made, groups=(group,)))


def test_a_held_group_cannot_be_planned() -> None:
    model, _, made = planned("linear")
    held = prunus.GroupPlan("4", 3, (0, 1))
    with pytest.raises(PlanError, match="4 is held: it is part of the model's output"):
        prunus.apply(model, dataclasses.replace(made, groups=(*made.groups, held)))


def test_an_unknown_group_is_named() -> None:
    model, _, made = planned("linear")
    group = dataclasses.replace(made.groups[0], name="1")
    with pytest.raises(PlanError, match="no group '1' in this model"):
        prunus.apply(model, dataclasses.replace(made, groups=(group,)))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "KeyError: 'leaves'"),
        ({"leaves": [], "structure": "x"}, "pass example_inputs"),
        ({"leaves": [{"shape": [2, -6], "dtype": "float32"}], "structure": ""}, "an input of shape [2, -6]"),
        ({"leaves": [{"shape": [2], "dtype": "save"}], "structure": ""}, "pass example_inputs"),
        ({"leaves": [{"shape": [1 << 40], "dtype": "float32"}], "structure": ""}, "an input of shape [1099"),
        ({"leaves": [{"unknown": "Request"}], "structure": ""}, "an input of type Request"),
    ],
)
def test_inputs_that_the_plan_cannot_describe(inputs: dict[str, Any], said: str) -> None:
    model, x, made = planned("linear")
    made = dataclasses.replace(made, inputs=inputs)
    with pytest.raises(PlanError) as caught:
        prunus.apply(model, made)
    assert said in str(caught.value) and "pass example_inputs" in str(caught.value)
    assert prunus.apply(model, made, example_inputs=x).plan == made


# --- with_keep


def test_with_keep_changes_one_group() -> None:
    _, _, made = planned()
    edited = made.with_keep("conv1", (11, 0, 5))
    assert edited.keep == {**made.keep, "conv1": (0, 5, 11)}
    assert dataclasses.replace(edited, groups=made.groups) == made
    assert made.keep["conv1"] != (0, 5, 11), "plans do not change"


def test_what_with_keep_says_is_done() -> None:
    model, _, made = planned()
    result = prunus.apply(model, made.with_keep("conv1", range(3, 9)))
    assert torch.equal(result.model.get_buffer("bn1.running_var"), model.get_buffer("bn1.running_var")[3:9])


@pytest.mark.parametrize(
    ("name", "indices", "said"),
    [
        ("conv1", [12], "conv1: index 12 is out of range; it has 12 channels, 0 to 11"),
        ("conv1", [0, 0], "conv1: index 0 is listed twice"),
        ("conv1", [0.0], "conv1: indices are whole numbers, got [0.0]"),
        ("conv1", 3, "conv1: give a list of indices, not 3"),
        ("conv2", [0], "the plan has no group 'conv2'; it has add, conv1"),
    ],
)
def test_what_with_keep_refuses(name: str, indices: Any, said: str) -> None:
    _, _, made = planned()
    with pytest.raises(PlanError) as caught:
        made.with_keep(name, indices)
    assert str(caught.value) == said


def test_an_emptied_group_is_refused_when_applied() -> None:
    model, _, made = planned()
    with pytest.raises(PlanError, match=r"all channels of conv1\.weight .* would go; at least one must stay"):
        prunus.apply(model, made.with_keep("conv1", []))


def test_rows_out_of_balance_are_refused_when_applied() -> None:
    model, x = network("grouped")
    made = prunus.plan(prunus.analyze(model, x), target=prunus.Target(channels=0.5))
    with pytest.raises(PlanError, match=r"2: its 4 rows must keep equally many channels, not \[0, 4\]"):
        prunus.apply(model, made.with_keep("2", range(8)))
