"""Models that pack sequences: what is around the packing, and the recurrent layers themselves, lose channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import prunus
from prunus.errors import CaptureError, SurgeryError

HALF = prunus.Target(channels=0.5)


class Tagger(nn.Module):
    """Both directions, two layers, the data of the packed sequence used by itself, in the order of the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 8), nn.Linear(12, 10)
        self.rnn = nn.LSTM(8, 6, num_layers=2, bidirectional=True)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.rnn(packed)
        y = PackedSequence(self.mix(y.data).relu(), *y[1:])
        padded, steps = pad_packed_sequence(y, batch_first=True)
        return self.out(padded), steps


class Encoder(nn.Module):
    """The last state, from a first state, in the order of time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.start = nn.Linear(5, 8), nn.Linear(5, 6)
        self.rnn, self.out = nn.GRU(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        first = self.start(x[0]).unsqueeze(0)
        packed = pack_padded_sequence(self.embed(x), lengths.cpu(), enforce_sorted=False)
        return self.out(self.rnn(packed, first)[1][-1])


class Listed(nn.Module):
    """Sequences in a list, a plain recurrent layer, padding to a length of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(5, 8, nonlinearity="relu"), nn.Conv1d(8, 3, 1)

    def forward(self, sequences: list[Tensor]) -> Tensor:
        y, _ = self.rnn(pack_sequence(sequences, enforce_sorted=False))
        padded, _ = pad_packed_sequence(y, batch_first=True, total_length=9)
        return self.out(padded.transpose(1, 2))


def tokens(*lengths: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20, (len(lengths), max(lengths))), torch.tensor(lengths)


def steps(*lengths: int) -> tuple[Tensor, Tensor]:
    return torch.randn(max(lengths), len(lengths), 5), torch.tensor(lengths)


def listed(*lengths: int) -> tuple[list[Tensor]]:
    return ([torch.randn(length, 5) for length in lengths],)


MODELS: dict[str, tuple[type[nn.Module], Callable[..., tuple[Any, ...]]]] = {
    "tagger": (Tagger, tokens),
    "encoder": (Encoder, steps),
    "listed": (Listed, listed),
}


def silence(model: Any, units: list[int]) -> None:
    """Let some units of the recurrent layer be zero at every step."""
    for parameter in model.rnn.parameters():
        width = model.rnn.hidden_size
        gates = parameter.data.view(-1, width, *parameter.shape[1:])
        gates[:, units] = 0
    if isinstance(model, Encoder):
        model.start.weight.data[units], model.start.bias.data[units] = 0, 0


@pytest.mark.parametrize("name", MODELS)
def test_units_that_are_silent_leave_without_a_trace_at_any_length(name: str) -> None:
    torch.manual_seed(0)
    kind, inputs = MODELS[name]
    model: Any = kind().eval()
    silence(model, [1, 4])
    structure = prunus.analyze(model, inputs(4, 7, 3))
    hidden = [
        group for group in structure.prunable if any("rnn.weight_hh" in m.parameter for m in group.members)
    ]
    plan = prunus.plan(structure, method=prunus.ByIndex(remove={group.name: [1, 4] for group in hidden}))
    result = prunus.apply(model, plan, example_inputs=inputs(4, 7, 3))
    small: Any = result.model
    assert result.report.form == "class" and any("packs sequences" in note for note in result.report.notes)
    assert small.rnn.hidden_size == model.rnn.hidden_size - 2
    with torch.no_grad():
        for given in (inputs(4, 7, 3), inputs(2, 5), inputs(6, 6, 1, 2)):
            torch.testing.assert_close(small(*given), model(*given), rtol=1e-5, atol=1e-6)


def test_all_that_a_tagger_holds_shrinks() -> None:
    torch.manual_seed(0)
    model, x = Tagger().eval(), tokens(4, 7, 3)
    small: Any = prunus.compress(model, x, target=HALF).model
    assert (small.embed.embedding_dim, small.rnn.hidden_size, small.mix.out_features) == (4, 3, 5)
    assert small(*tokens(3, 1))[0].shape == (2, 3, 3)


def test_what_needs_a_graph_is_refused() -> None:
    model, x = Tagger().eval(), tokens(4, 7, 3)
    with pytest.raises(CaptureError, match="packs sequences"):
        prunus.decompose(model, x, target=prunus.Target(params=0.8))


def test_a_class_that_cannot_be_smaller_is_named() -> None:
    class Fixed(Encoder):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            if self.embed.weight.numel() != 40:
                raise ValueError("eight channels")
            return super().forward(x, lengths)

    model, x = Fixed().eval(), steps(4, 2)
    structure = prunus.analyze(model, x)
    (embedding,) = [
        group for group in structure.prunable if any(m.parameter == "embed.weight" for m in group.members)
    ]
    plan = prunus.plan(structure, method=prunus.ByIndex(remove={embedding.name: [0]}))
    with pytest.raises(SurgeryError, match=r"packs sequences.*eight channels"):
        prunus.apply(model, plan, example_inputs=x)
