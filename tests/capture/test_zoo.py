"""Capture on real architectures with random weights: the graph equals the model, with a dynamic batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import capture, size_of
from prunus.inputs import as_inputs
from tests.capture.running import calls, run_graph

IMAGE = (1, 3, 224, 224)
IDS = torch.randint(5, 99, (2, 12), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def vision(name: str, shape: tuple[int, ...] = IMAGE, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        models = pytest.importorskip("torchvision.models")
        return models.get_model(name, weights=None, **options), torch.randn(shape)

    return build


def image(name: str, shape: tuple[int, ...] = IMAGE) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        timm = pytest.importorskip("timm")
        return timm.create_model(name), torch.randn(shape)

    return build


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
SMALL_SPEECH = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
    "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def language(
    config: str, model: str, options: dict[str, Any], example: Any
) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**options)), example

    return build


def clip() -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    text = {**SMALL, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sight = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=sight, projection_dim=16)
    return transformers.CLIPModel(config), {**TEXT, "pixel_values": torch.randn(2, 3, 32, 32)}


GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

QUICK = {
    "resnet18": vision("resnet18", (1, 3, 64, 64)),
    "bert": language("BertConfig", "BertForSequenceClassification", SMALL, TEXT),
    "llama": language("LlamaConfig", "LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}, TEXT),
}
MORE = {
    "swin_t": vision("swin_t"),
    "googlenet": vision("googlenet", aux_logits=False, init_weights=False),
    "raft_small": vision("raft_small", (2, 1, 3, 128, 128)),
    "vit_tiny": image("vit_tiny_patch16_224"),
    "levit": image("levit_128s"),
    "xcit": image("xcit_nano_12_p16_224"),
    "maxvit": image("maxvit_nano_rw_256", (1, 3, 256, 256)),
    "gpt2": language("GPT2Config", "GPT2LMHeadModel", GPT2, TEXT),
    "t5": language("T5Config", "T5ForConditionalGeneration", T5, {**TEXT, "decoder_input_ids": IDS[:, :8]}),
    "whisper": language(
        "WhisperConfig", "WhisperForConditionalGeneration", SMALL_SPEECH,
        {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": IDS[:, :8]},
    ),
    "clip": clip,
}  # fmt: skip


def check(build: Callable[[], tuple[nn.Module, Any]]) -> None:
    torch.manual_seed(0)
    model, example = build()
    if isinstance(example, Tensor) and example.dim() == 5:
        example = (*example, 2)  # two images and a number
    model.train()
    captured = capture(model, example)
    assert captured.batch == 2, captured.static_reason
    assert model.training
    model.eval()
    for node in captured.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            assert all(type(size) is int for size in size_of(node))
    assert not [name for name in calls(captured) if "assert" in name or "wrap_with" in name]
    with torch.no_grad():
        for inputs in (captured.example, captured.run_inputs):
            expected = [
                leaf
                for leaf in pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))
                if isinstance(leaf, Tensor)
            ]
            actual = [
                leaf
                for leaf in pytree.tree_leaves(run_graph(captured, as_inputs(inputs)))
                if isinstance(leaf, Tensor)
            ]
            assert len(actual) == len(expected) > 0
            for one, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_architectures(name: str) -> None:
    check(QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_architectures(name: str) -> None:
    check(MORE[name])
