"""The user's own class comes back smaller, with every attribute right, or not at all and with the reason."""

import copy
import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.capture import capture
from prunus.inputs import as_inputs
from prunus.structure import Structure, find_structure
from prunus.surgery.lift import lift
from prunus.surgery.slice import slice_graph
from prunus.surgery.write_back import write_back


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(width: int = 32, length: int = 6) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """Weights and statistics that are not the initial ones, so that ignoring them shows."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.1, 0.4, generator=generator)
    return model


def some(structure: Structure, fraction: float, outer: bool = False, only: str = "") -> dict[str, np.ndarray]:
    """Units to keep of every group: the first of every row, as many as the constraints want."""
    keep: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for group in structure.prunable:
        if group.outer != outer or not group.name.startswith(only):
            continue
        count = max(1, round(group.row_size * fraction))
        count = next((counts[name] for name in group.tied if name in counts), count)
        counts[group.name] = count
        rows = np.arange(group.size)[None] if group.rows is None else group.rows
        keep[group.name] = np.sort(rows[:, :count].reshape(-1))
    return keep


def written_back(
    model: nn.Module,
    inputs: Any,
    fraction: float = 0.5,
    outer: bool = False,
    keep: dict[str, Any] | None = None,
) -> tuple[nn.Module | None, str, nn.Module]:
    """(the class or None, note or reason, the graph module); checks that the model is left alone."""
    before = copy.deepcopy(model.state_dict())
    attributes = {path: dict(module.__dict__) for path, module in model.named_modules()}
    structure = find_structure(capture(model, inputs))
    labels = structure.keep_labels(some(structure, fraction, outer) if keep is None else keep)
    small = slice_graph(structure, labels)
    graph = lift(small)
    written = write_back(structure, small, graph, torch.from_numpy(labels))
    own, reason = written.module, written.remark
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {path: dict(module.__dict__) for path, module in model.named_modules()} == attributes
    return own, reason, graph


def accepted(model: nn.Module, inputs: Any, **options: Any) -> Any:
    """The class, which must be one of the same type that computes what the graph does and is smaller."""
    own, reason, graph = written_back(trained(model), inputs, **options)
    assert own is not None, reason
    assert type(own) is type(model)
    given = as_inputs(inputs)
    with torch.no_grad():
        wanted = graph(*given.args, **given.kwargs)
        torch.testing.assert_close(own.eval()(*given.args, **given.kwargs), wanted, rtol=1e-4, atol=1e-5)
    count = sum(p.numel() for p in own.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    return own


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


def test_plain_network_states_its_new_sizes() -> None:
    own = accepted(Plain(), image())
    assert (own.conv1.in_channels, own.conv1.out_channels) == (3, 8)
    assert (own.conv2.in_channels, own.conv2.out_channels) == (8, 16)
    assert (own.bn1.num_features, own.bn2.num_features) == (8, 16)
    assert (own.fc.in_features, own.fc.out_features) == (16 * 16, 10)
    assert (own.conv1.kernel_size, own.conv1.padding, own.conv1.groups) == ((3, 3), (1, 1), 1)


def test_smaller_class_trains() -> None:
    own = accepted(Plain(), image()).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
    weights = [p.detach().clone() for p in own.parameters()]
    own(image()).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(weights, own.parameters(), strict=True))
    assert own.bn1.num_batches_tracked == 1 or int(own.bn1.num_batches_tracked) != 0


def test_smaller_class_is_saved_copied_and_captured_like_any_other() -> None:
    own = accepted(Plain(), image())
    other = copy.deepcopy(own)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(own.state_dict())
    torch.testing.assert_close(other(image()), own(image()))
    twice, reason, _ = written_back(own, image())
    assert twice is not None, reason
    assert twice.conv2.out_channels == 8  # type: ignore[union-attr]


def test_mode_trainability_and_precision_stay() -> None:
    model = trained(Plain()).double().train()
    model.conv1.weight.requires_grad_(False)  # type: ignore[union-attr]
    own, reason, _ = written_back(model, image().double())
    assert own is not None, reason
    assert own.training
    assert not own.conv1.weight.requires_grad  # type: ignore[union-attr]
    assert own.conv1.bias.requires_grad  # type: ignore[union-attr]
    assert {p.dtype for p in own.parameters()} == {torch.float64}


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.norm = nn.GroupNorm(4, 32)
        self.deep = nn.Conv2d(32, 32, 3, groups=32)
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.deep(self.norm(self.grouped(self.first(x))))))


def test_groups_of_convolutions_and_norms() -> None:
    own = accepted(Grouped(), image())
    assert (own.grouped.in_channels, own.grouped.out_channels, own.grouped.groups) == (8, 16, 4)
    assert (own.norm.num_groups, own.norm.num_channels) == (4, 16)
    assert (own.deep.in_channels, own.deep.out_channels, own.deep.groups) == (16, 16, 16)
    assert (own.up.in_channels, own.up.out_channels) == (16, 4)


class Attention(nn.Module):
    def __init__(self, dim: int = 32, heads: int = 4, head_dim: int = 8, scale: str = "attribute") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.scale, self.scaling = head_dim**-0.5, scale
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        packed = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if self.scaling == "fused":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = self.scale if self.scaling == "attribute" else self.head_dim**-0.5
            out = ((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v
        return x + self.proj(out.transpose(1, 2).reshape(batch, length, self.inner))


def test_packed_attention_with_narrower_heads() -> None:
    own = accepted(Attention(), tokens())
    assert (own.num_heads, own.head_dim, own.inner) == (4, 4, 16)
    assert own.scale == 8**-0.5
    assert (own.qkv.out_features, own.proj.in_features) == (48, 16)


def test_packed_attention_with_fewer_heads() -> None:
    own = accepted(Attention(), tokens(), outer=True)
    assert (own.num_heads, own.head_dim, own.inner) == (2, 8, 16)


@pytest.mark.parametrize("scale", ["fused", "computed"])
def test_temperature_that_the_class_computes_is_made_up_for_in_the_query(scale: str) -> None:
    model = trained(Attention(scale=scale))
    own, note, graph = written_back(model, tokens())
    assert own is not None, note
    assert "qkv.weight by 0.707107" in note
    with torch.no_grad():
        torch.testing.assert_close(own(tokens()), graph(tokens()), rtol=1e-4, atol=1e-5)
    ratio = own.qkv.weight / graph.get_submodule("qkv").weight  # type: ignore[union-attr, operator]
    torch.testing.assert_close(ratio[:16], torch.full((16, 32), 0.5**0.5))
    torch.testing.assert_close(ratio[16:], torch.ones(32, 32))


class Positioned(nn.Module):
    """A table of positions gives tokens labels of their own, which are held, and lie beside those of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 6, 32))
        self.attention, self.head = Attention(scale="fused"), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x + self.positions))


def test_packed_attention_behind_a_table_of_positions() -> None:
    structure = prunus.analyze(trained(Positioned()), torch.randn(2, 6, 32))
    heads = [g for g in structure.prunable if g.row_count == 4 and not g.outer]
    assert len(heads) == 2 and not any(g.tied for g in heads), "queries and values have widths of their own"
    model, x = trained(Positioned()), torch.randn(2, 6, 32)
    half = prunus.compress(model, x, target=prunus.Target(channels=0.5), keep_class=True)
    assert half.report.form == "class", half.report.form_reason
    assert half.model.attention.head_dim == 4
    names = {g.name: g.size for g in heads}
    first, second = names
    keep = {first: [i for i in range(32) if i % 8 < 3], second: [i for i in range(32) if i % 8 < 6]}
    mixed = prunus.apply(model, prunus.plan(structure, method=prunus.ByIndex(keep=keep)), example_inputs=x)
    assert mixed.report.form == "graph" and (mixed.report.verification or {})["passed"]


class HeadsFromWidth(nn.Module):
    """Computes the width of the heads from the input's width: narrower heads cannot be said."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(out.reshape(b, n, c))


def test_width_that_no_attribute_makes_is_refused_with_its_line() -> None:
    own, reason, _ = written_back(trained(HeadsFromWidth()), tokens())
    assert own is None
    assert "test_write_back.py:" in reason
    assert "c // self.heads" in reason


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(-1, 16 * 64))


def test_number_in_the_code_is_refused_with_its_line() -> None:
    own, reason, _ = written_back(trained(HardCoded()), image())
    assert own is None
    assert "test_write_back.py:" in reason
    assert "view(-1, 16 * 64)" in reason
    assert "512" in reason


class Chunked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.a, self.b = nn.Linear(32, 16), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.a(a) + self.b(b)


def test_unequal_parts_of_a_chunk_are_refused_with_the_line() -> None:
    model = trained(Chunked())
    structure = find_structure(capture(model, tokens()))
    names = [group.name for group in structure.prunable]
    assert len(names) == 2
    own, reason, _ = written_back(model, tokens(), keep={names[0]: range(2), names[1]: range(5)})
    assert own is None
    assert "chunk(2, dim=-1)" in reason
    assert "2, 5" in reason


class Split(nn.Module):
    """Parts whose sizes are attributes: alone, in a list, and as bounds of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.sizes = 12, [12, 20]
        self.fc1, self.a, self.b = nn.Linear(32, 32), nn.Linear(12, 6), nn.Linear(20, 6)
        self.fc2, self.c, self.d = nn.Linear(32, 32), nn.Linear(12, 6), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).split(self.sizes, dim=-1)
        y = self.fc2(x)
        return self.a(a) + self.b(b) + self.c(y[..., : self.left]) + self.d(y[..., self.left :])


def test_sizes_of_parts() -> None:
    own = accepted(Split(), tokens())
    assert own.sizes == [6, 10]
    assert own.left == 6


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.block = nn.Linear(16, 32)
        self.back = nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.back(F.relu(self.block(x))))


def test_tied_weights_stay_tied() -> None:
    own = accepted(Tied(), torch.randint(0, 20, (2, 5)))
    assert own.head.weight is own.embed.weight
    assert (own.embed.num_embeddings, own.embed.embedding_dim) == (20, 8)
    assert (own.head.in_features, own.head.out_features) == (8, 20)
    assert (own.block.in_features, own.block.out_features) == (8, 16)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(32, 32)
        self.step = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.LayerNorm(32))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        return self.out(self.step(self.step(x)))


def test_module_that_is_called_twice() -> None:
    own = accepted(Shared(), tokens())
    assert (own.step[0].in_features, own.step[0].out_features) == (16, 24)
    assert own.step[3].normalized_shape == (16,)


@dataclass
class Settings:
    width: int = 32
    heads: int = 4
    head_dim: int = 8
    classes: int = 8


class Configured(nn.Module):
    class Block(nn.Module):
        def __init__(self, config: Settings) -> None:
            super().__init__()
            self.config = config
            self.q, self.k, self.v = (
                nn.Linear(config.width, config.heads * config.head_dim) for _ in range(3)
            )
            self.o = nn.Linear(config.heads * config.head_dim, config.width)

        def forward(self, x: Tensor) -> Tensor:
            shape = (*x.shape[:-1], self.config.heads, self.config.head_dim)
            q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q, self.k, self.v))
            out = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2)
            return x + self.o(out.flatten(2))

    def __init__(self) -> None:
        super().__init__()
        self.config = Settings()
        self.blocks = nn.ModuleList(self.Block(self.config) for _ in range(2))
        self.head = nn.Linear(self.config.width, self.config.classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_configuration_that_modules_share() -> None:
    model = Configured()
    own = accepted(model, tokens())
    assert own.config.head_dim == 4
    assert own.config.heads == 4
    assert own.config.classes == 8
    assert own.blocks[0].config is own.config
    assert model.config.head_dim == 8


def test_configuration_that_cannot_serve_all_modules_is_refused() -> None:
    model = trained(Configured())
    structure = find_structure(capture(model, tokens()))
    keep = some(structure, 0.5, only="blocks.0")
    assert keep
    own, reason, _ = written_back(model, tokens(), keep=keep)
    assert own is None
    assert "test_write_back.py:" in reason


def square(width: int = 24) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(width, width, 1) for _ in range(4)))


def test_in_and_out_are_told_apart_though_all_layers_are_square() -> None:
    model = trained(square())
    structure = find_structure(capture(model, image(24)))
    widths = [20, 7, 13]
    keep = {group.name: range(n) for group, n in zip(structure.prunable, widths, strict=True)}
    own, reason, _ = written_back(model, image(24), keep=keep)
    assert own is not None, reason
    sizes = [(layer.in_channels, layer.out_channels) for layer in own]  # type: ignore[union-attr]
    assert sizes == list(itertools.pairwise([24, 20, 7, 13, 24]))


class Scaled(nn.Module):
    """Sizes in the attributes of a class, in a module without parameters, and behind arithmetic."""

    width = 32

    class Fold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = (4, 8)
            self.total = 32

        def forward(self, x: Tensor) -> Tensor:
            y = x.view(*x.shape[:2], *self.parts)
            return y.relu().reshape(*x.shape[:2], 2 * (self.total // 2))

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fold, self.fc2 = nn.Linear(16, 32), self.Fold(), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        bias = torch.ones(self.width, device=x.device)
        return self.fc2(self.fold(y * bias))


def test_attributes_of_classes_tuples_and_arithmetic() -> None:
    own = accepted(Scaled(), tokens(16))
    assert own.width == own.fc1.out_features < 32
    assert own.fold.total == own.fc1.out_features
    assert own.fold.parts[0] * own.fold.parts[1] == own.fold.total
    assert Scaled.width == 32


class Cached(nn.Module):
    """The attribute reaches the view only as a number without origin."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 24
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        width = int(float(self.hidden))
        return self.fc2(self.fc1(x).reshape(-1, width)).view(*x.shape[:2], 8)


def test_number_without_origin_is_found_by_value() -> None:
    own = accepted(Cached(), tokens(16))
    assert own.hidden == 12


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 8)
        self.register_buffer("shift", torch.arange(24.0), persistent=False)
        self.register_buffer("gain", torch.arange(24.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2((self.fc1(x) + self.shift) * self.gain)


def test_buffers_keep_their_kind() -> None:
    own = accepted(Buffered(), tokens(16))
    assert own.shift.shape == own.gain.shape == (12,)
    assert "gain" in own.state_dict()
    assert "shift" not in own.state_dict()


class Auxiliary(nn.Module):
    """A head that only training runs is not in the graph, and so was not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(16, 24), nn.Linear(24, 4), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y) + self.extra(y) if self.training else self.head(y)


def test_class_that_could_not_be_trained_is_refused() -> None:
    own, reason, _ = written_back(trained(Auxiliary()), tokens(16))
    assert own is None
    assert "training" in reason
    assert "self.extra(y)" in reason


def test_model_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one of me")

    own, reason, _ = written_back(trained(Stubborn(nn.Linear(8, 6), nn.Linear(6, 4))), tokens(8))
    assert own is None
    assert "only one of me" in reason


class SilentHead(nn.Module):
    """Its last layer is zero: wrong inner numbers would not show in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(scale="fused")
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x))


def test_layer_of_zeros_does_not_hide_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(SilentHead())
    nn.init.zeros_(model.head.weight)  # type: ignore[union-attr]
    nn.init.zeros_(model.head.bias)  # type: ignore[union-attr]
    own, note, _ = written_back(model, tokens())
    assert own is not None, note
    assert "multiplied" in note
    assert not own.head.weight.any()  # type: ignore[union-attr]
    # without making up for the temperature the difference has to be noticed
    module = importlib.import_module("prunus.surgery.write_back")
    monkeypatch.setattr(module, "compensation", lambda *_: ("", {}))
    own, reason, _ = written_back(model, tokens())
    assert own is None
    assert "computes something else" in reason


class Unread(nn.Module):
    """States numbers that its forward never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = 24
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_attributes_that_no_forward_reads_stay_and_are_named() -> None:
    model = trained(Unread()).eval()
    own, note, _ = written_back(model, torch.randn(2, 6))
    assert own is not None and own.first.out_features == 12  # type: ignore[union-attr]
    assert own.budget == model.budget == 24
    assert "budget=24" in note and "in_features" not in note
