"""Wrong versions of the source, one line each, and five networks that they are tried on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` below the package, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


SLICE, LAYERS = "surgery/slice.py", "surgery/rewriters/layers.py"
SELECTION, SIZES = "surgery/rewriters/selection.py", "surgery/rewriters/sizes.py"
KEPT_INDEX = "small = small.index_select(axis, torch.nonzero(line).flatten().to(small.device))"
MUTANTS = (
    Mutant("channels of a weight in reverse order", SLICE, KEPT_INDEX, KEPT_INDEX.replace(".flatten()", ".flatten().flip(0)")),
    Mutant("the first channels instead of those kept", SLICE, KEPT_INDEX, "small = small.narrow(axis, 0, int(line.sum()))"),
    Mutant("inputs of a layer shifted by one", SLICE, KEPT_INDEX, KEPT_INDEX.replace("nonzero(line)", "nonzero(line.roll(1) if axis == 1 else line)")),
    Mutant("two channels swapped, in inputs only", SLICE, KEPT_INDEX, KEPT_INDEX.replace(".flatten()", ".flatten()[[1, 0, *range(2, int(line.sum()))] if axis == 1 and line.sum() > 1 else slice(None)]")),
    Mutant("biases and statistics keep their first entries", SLICE, KEPT_INDEX, f"{KEPT_INDEX} if tensor.dim() > 1 else small[: int(line.sum())]"),
    Mutant("one bias is forgotten: zeros", SLICE, KEPT_INDEX, f"{KEPT_INDEX} * (1 if tensor.dim() > 1 else 0)"),
    Mutant("the gain of a weight norm stays", SLICE, "    keep_weights(captured, tensors, {node: run.kept(node) for node in placeholders})\n", ""),
    Mutant("a convolution keeps its old number of groups", LAYERS, 'set_argument(copy, "groups", channels // weight.shape[1])', "return"),
    Mutant("a convolution gets half of the groups", LAYERS, 'set_argument(copy, "groups", channels // weight.shape[1])', 'set_argument(copy, "groups", max(1, channels // weight.shape[1] // 2))'),
    Mutant("a group norm over all channels", LAYERS, 'set_argument(copy, "num_groups", int(line.view(groups, -1).any(1).sum()))', 'set_argument(copy, "num_groups", 1)'),
    Mutant("attention by the new width", LAYERS, 'set_argument(copy, "scale", 1 / math.sqrt(query.before[-1]))', 'set_argument(copy, "scale", 1 / math.sqrt(query.shape[-1]))'),
    Mutant("a layer norm over one channel more or less", LAYERS, 'set_argument(copy, "normalized_shape", sizes)', "return"),
    Mutant("a slice begins one channel late", SELECTION, "    rank = torch.cumsum(line, 0) - 1\n    return rank[positions[line[positions]]]", "    rank = torch.cumsum(line, 0) - 1\n    return (rank[positions[line[positions]]] + 1) % int(line.sum())"),
    Mutant("a split with its widths reversed", SELECTION, "set_all(copy, (copy.args[0], sizes, dim))", "set_all(copy, (copy.args[0], sizes[::-1], dim))"),
    Mutant("an index counts channels that left", SELECTION, "index = (torch.cumsum(kept_here, 0) - 1)[index]", "index = index % int(kept_here.sum())"),
    Mutant("channels roll as far as before", SIZES, "shifts[i] = int(line[len(line) - wrapped :].sum())", "pass"),
    Mutant("zeros padded on the other side", SIZES, "widths[2 * i] = int(line[:before].sum()) if before else widths[2 * i]", "widths[2 * i], widths[2 * i + 1] = widths[2 * i + 1], widths[2 * i]"),
    Mutant("the parts of a pack in another order", "surgery/unpack.py", 'operator.getitem, (split, i), name=', 'operator.getitem, (split, (i + 1) % len(sizes)), name='),
    Mutant("a hold is forgotten", "structure/labels.py", "        self.holds.append((labels[labels > 0], Reason(text, node)))", "        pass"),
    Mutant("what meets is not tied", "structure/labels.py", "        if a[0] != b[0] or not np.array_equal(a, b):\n            self.unite(a, b, node)\n        return True", "        return True"),
    Mutant("a concatenation the other way round", "structure/rules/joining.py", "    joined = _joined(run, node, parts, dim, shape)", "    joined = _joined(run, node, parts[::-1], dim, shape)"),
    Mutant("the halves of a gate are the same", "structure/rules/elementwise.py", "for start in (0, shape[dim]):", "for start in (0, 0):"),
    Mutant("a flip is taken for none", "structure/rules/movement.py", "    results = [run._move(node, node.args[0], track).expand(shape) for track in small.tracks]", "    results = [track.expand(shape) for track in small.tracks]"),
    Mutant("filters of a group are taken for its inputs", "structure/rules/convolution.py", 'names = "gkn" if transposed else "gnk"', 'names = "gkn"'),
    Mutant("statistics of a batch norm have no channels", "structure/rules/normalization.py", "for v in (a.weight, a.bias, a.running_mean, a.running_var)]", "for v in (a.weight, a.bias)]"),
    Mutant("recurrent units leave the first gate only", "structure/rules/recurrent.py", "for gate in range(gates)]", "for gate in range(1)]"),
    Mutant("gates are taken for interleaved", "structure/rules/recurrent.py", "compact(track, (0,)).reshape(gates, width) for track", "compact(track, (0,)).reshape(width, gates).T for track"),
    Mutant("a contraction does not look at what it sums over", "structure/rules/contraction.py", "    merged = meet(run.labels, node.name, left, right, real_x, real_w, REASON)", "    merged = [*left, *right]"),
    Mutant("a pixel shuffle lets positions leave", "structure/rules/movement.py", '    kept = run.hold(node, rows, {axis + 1, axis + 2, axis + 3}, "is a position in space for a pixel shuffle")', "    kept = [track[:, :, 0] for track in rows.tracks]"),
)  # fmt: skip


class Residual(nn.Module):
    """Convolutions with batch normalization, shortcuts, a dense connection, a flip and a roll."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.between, self.dense = nn.BatchNorm2d(10), nn.Conv2d(16, 6, 1)
        self.wide, self.out = nn.Conv2d(6, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = x + self.two(F.relu(self.between(self.one(x))))
        z = self.dense(torch.cat((y, x.flip(1)), 1))
        z = F.pad(z, (0, 0, 0, 0, 1, 3)) + self.wide(F.max_pool2d(z, 3, 1, 1)).roll(3, 1)
        return self.out(z.mean((2, 3)))


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, shuffled channels, group norm, weight norm, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.GroupNorm(3, 12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.gate = nn.Conv2d(12, 12, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 8, 1))
        self.after = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.out = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(F.relu(self.stem(x))))
        x = (
            self.depthwise(F.relu(x)).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        )  # a shuffle, written out
        x = self.after(F.silu(self.normed(F.glu(self.gate(x), 1))))
        return self.out(F.pixel_shuffle(x, 2).mean((2, 3)))


class Transformer(nn.Module):
    """Attention with one packed layer, with separate layers, a gated perceptron, layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(11, 8), nn.Parameter(torch.zeros(6, 8))
        self.first, self.second, self.third = (nn.LayerNorm(8) for _ in range(3))
        self.qkv, self.merge = nn.Linear(8, 36), nn.Linear(12, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.join, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 20), nn.Linear(10, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.places
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.second(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        x = x + self.join((scores @ v).transpose(1, 2).flatten(2))
        gate, value = self.up(self.third(x)).chunk(2, -1)
        return self.out(x + self.down(F.gelu(gate) * value))


class Recurrent(nn.Module):
    """An LSTM of two layers and two directions, a GRU, a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru, self.cell = nn.GRU(10, 6, batch_first=True), nn.GRUCell(6, 7)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(self.lstm(self.embed(x))[0])
        state = self.cell(x[:, 0])
        return self.out(self.cell(x[:, 1], state))


class Branches(nn.Module):
    """As detectors are: a pyramid from top to bottom, parts of channels, heads on every level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low, self.high = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 10, 2, 2),
            nn.Conv2d(10, 12, 2, 2),
        )
        self.side, self.top = nn.Conv2d(10, 8, 1), nn.Conv2d(12, 8, 1)
        self.part, self.fuse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(9, 8, 1)
        self.tower, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.box, self.kind = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)
        self.last, self.order = nn.Conv2d(5, 3, 1), [5, 1, 7, 0, 3, 2, 6, 4]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        low = F.relu(self.low(F.relu(self.stem(x))))
        top = self.top(F.relu(self.high(low)))
        merged = self.side(low) + F.interpolate(top, scale_factor=2)[:, self.order]
        a, b = torch.split(merged, (3, 5), 1)
        merged = self.fuse(torch.cat((b, self.part(a)), 1)) * merged
        levels = [F.relu(self.norm(self.tower(level))) for level in (merged, top)]
        heads = [head(level) for level in levels for head in (self.box, self.kind)]
        return (*heads, self.last(merged[:, 2:7]))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Five kinds of networks by name, with numbers that hide nothing, and an input for each."""
    torch.manual_seed(0)
    image, ids = torch.randn(2, 3, 8, 8), torch.randint(11, (2, 6))
    made = {
        "residual": (Residual(), image), "grouped": (Grouped(), image), "transformer": (Transformer(), ids),
        "recurrent": (Recurrent(), ids), "branches": (Branches(), image),
    }  # fmt: skip
    for model, _ in made.values():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.uniform_(-0.6, 0.6) if tensor.dim() > 1 else tensor.uniform_(0.5, 1.5)
        model.eval()
    return made
