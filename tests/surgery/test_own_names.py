"""Submodules and tensors may be called like what a graph module has for its own ends."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.meta = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu() * self.meta


class Named(nn.Module):
    """A submodule, a parameter and a buffer with names of one's choice; the graph form, for 8 stands in the code."""

    def __init__(self, submodule: str, parameter: str, buffer: str, width: int | None = None) -> None:
        super().__init__()
        self.first, self.last, self.names = nn.Linear(5, 8), nn.Linear(8, 3), (submodule, parameter, buffer)
        self.width = width
        self.add_module(submodule, Inner())
        self.register_parameter(parameter, nn.Parameter(torch.randn(8)))
        self.register_buffer(buffer, torch.randn(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        submodule, parameter, buffer = (getattr(self, name) for name in self.names)
        x = submodule(self.first(x)) * parameter + buffer
        return self.last(x if self.width else x.reshape(-1, 8))


NAMES = [
    ("meta", "graph", "code"),
    ("graph", "recompile", "meta"),
    ("code", "meta", "print_readable"),
    ("recompile", "_graph", "shape_env"),
    ("print_readable", "_code", "to_folder"),
    ("delete_submodule", "add_submodule", "graph"),
]


@pytest.mark.parametrize("names", NAMES)
def test_graph_form_keeps_the_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Named(*names).eval(), torch.randn(4, 5)
    result = prunus.compress(net, x, target=prunus.Target(channels=0.5))
    model = result.model
    assert result.report.form == "graph"
    assert list(model.state_dict()) == list(net.state_dict())
    assert [path for path, _ in model.named_modules()] == [path for path, _ in net.named_modules()]
    assert model.get_submodule(names[0]).linear.weight.shape == (4, 4)
    assert model.get_parameter(names[1]).shape == model.get_buffer(names[2]).shape == (4,)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert list(other.state_dict()) == list(model.state_dict())
        assert other.get_parameter(names[1]) is not model.get_parameter(names[1])
    loaded = prunus.load(result.save(tmp_path / "saved"))
    torch.testing.assert_close(loaded(x), model(x))
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_graph_form_trains_and_is_pruned_again() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    first = prunus.compress(Named("graph", "code", "meta").eval(), x, target=prunus.Target(channels=0.75))
    first.model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in first.model.parameters())
    second = prunus.compress(first.model.eval(), x, target=prunus.Target(channels=0.5))
    assert second.report.after.params < first.report.after.params


@pytest.mark.parametrize("names", NAMES[:2])
def test_the_class_comes_back(names: tuple[str, str, str]) -> None:
    torch.manual_seed(0)
    net, x = Named(*names, width=8).eval(), torch.randn(4, 5)
    result = prunus.compress(net, x, target=prunus.Target(channels=0.5))
    assert type(result.model) is Named, result.report.form_reason
    assert list(result.model.state_dict()) == list(net.state_dict())
