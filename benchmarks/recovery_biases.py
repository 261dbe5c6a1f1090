"""What biases bring to layers that have none, when a network is repaired: `allow_bias=True`.

python benchmarks/recovery_biases.py    # a quarter of an hour on two cores; writes benchmarks/results/recovery_biases.md

No network at hand is without biases and without batch normalizations, which take offsets up. So two are trained here for a few minutes:
a plain convolutional network on CIFAR-10, and a small Llama on the bytes of sentences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _record import data, table, write
from resnet56 import tune
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.api import execute
from prunus.criteria import OBS
from prunus.evidence import collect
from prunus.recovery import STEPS

SAMPLES = 1024
EPOCHS, RATE = 6, 0.02
LENGTH, UPDATES = 64, 1500


@dataclass(frozen=True)
class Subject:
    """A network without biases, what it is repaired on, and how it is judged.

    Attributes:
        title: of the network.
        macs: shares that stay.
        net: trained.
        batches: without labels.
        outputs: (samples, outputs) of a model for inputs that are judged.
        score: of a model, as it is shown.
    """

    title: str
    macs: tuple[float, ...]
    net: nn.Module
    batches: list[Any]
    outputs: Callable[[nn.Module], Tensor]
    score: Callable[[nn.Module], str]


def plain_cnn(load: Any) -> Subject:
    arrays = load.cifar10()

    def conv(into: int, out: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return [layer, nn.ReLU()]

    sizes = [(3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    net = nn.Sequential(
        *(part for size in sizes for part in conv(*size)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.append(nn.Linear(128, 10, bias=False)).to(memory_format=torch.channels_last)
    tune(net, arrays["x_train"], arrays["y_train"], EPOCHS, load.normalize, RATE)
    images, labels = load.normalize(arrays["x_test"][:2000]), arrays["y_test"][:2000]
    some = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[:SAMPLES]

    def score(model: nn.Module) -> str:
        return f"{float((model(images).argmax(1) == labels).float().mean()):.1%}"

    calibration = [load.normalize(x) for x in arrays["x_train"][some].split(128)]
    return Subject("plain CNN, CIFAR-10", (0.6, 0.4), net, calibration, lambda model: model(images), score)


def llama(load: Any) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=LENGTH, use_cache=False, attention_bias=False, mlp_bias=False,
    )  # fmt: skip
    net = LlamaForCausalLM(config)

    def pieces(split: str) -> Tensor:
        first, second, _ = load.stsb(split)
        text = " ".join([*first, *second]).encode()
        return torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).view(-1, LENGTH)

    def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    train, judged = pieces("train"), pieces("test")[:500]
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        tokens = train[torch.randint(len(train), (32,))]
        loss = loss_of(net(tokens).logits, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()

    def outputs(model: nn.Module) -> Tensor:
        given = model(judged)
        return (given if isinstance(given, Tensor) else given["logits"]).flatten(0, 1)

    def score(model: nn.Module) -> str:
        return f"{float(loss_of(outputs(model).unflatten(0, judged.shape), judged)):.3f} nats"

    calibration = list(train[torch.randperm(len(train))[:SAMPLES]].split(64))
    return Subject("Llama with 2 layers, bytes", (0.7, 0.5), net, calibration, outputs, score)


def rows_of(subject: Subject) -> list[list[str]]:
    """One row for each share and method."""
    structure = prunus.analyze(subject.net.eval(), subject.batches[0][:2])
    evidence = collect(structure, OBS().needs, subject.batches)
    rows = []
    for macs, method in itertools.product(subject.macs, ("l2", "obs")):
        made = prunus.plan(structure, method=method, target=prunus.Target(macs=macs), data=evidence)
        results = [
            execute(structure, made, verify=False, data=subject.batches, steps=STEPS, allow_bias=allow)
            for allow in (False, True)
        ]
        with torch.inference_mode():
            wanted = subject.outputs(subject.net).double()
            errors = [
                (subject.outputs(result.model).double() - wanted).square().mean() / wanted.var(0).mean()
                for result in results
            ]
            scores = [subject.score(net) for net in (subject.net, *(result.model for result in results))]
        given = str(len(results[1].plan.biases))
        rows.append([subject.title, f"{macs:g}", f"`{method}`", *(f"{error:.4f}" for error in errors), *scores, given])  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main() -> None:
    load = data()
    rows = []
    for made in (plain_cnn, llama):
        torch.manual_seed(0)
        rows += rows_of(made(load))
    head = ["network", "share of the MACs", "method", "error without", "error with", "score before", "score without", "with", "biases given"]  # fmt: skip
    text = f"""# Biases for layers that have none

{table(head, rows)}

Error of the outputs on test inputs: mean square, relative to their variance. Scores: accuracy on 2,000 test images of CIFAR-10; loss on
32,000 bytes of STS-B's test sentences. Both networks were trained by this program, without any bias, and repaired on {SAMPLES:,} training
inputs. One run each."""
    print(write("recovery_biases", "python benchmarks/recovery_biases.py", text).read_text())


if __name__ == "__main__":
    main()
