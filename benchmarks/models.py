"""Every model of a fixed list: pruned to half of its channels and to half of its MACs, verified, exported again, trained one step.

    python benchmarks/models.py [NAME ...]           # writes benchmarks/results/models.md
    python benchmarks/models.py --only resnet18      # print one model, write nothing

Each model runs in a process of its own on one thread. The time of analysis and surgery is compared, in that process, with
that of `torch.export` and, where it works, with building Torch-Pruning's dependency graph and one step of its pruner.
Results of finished models are kept in benchmarks/results/models.jsonl, so that a run can be continued.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TORCHVISION = """resnet18 resnet50 resnext50_32x4d mobilenet_v2 mobilenet_v3_small densenet121 vgg11_bn googlenet inception_v3
shufflenet_v2_x0_5 efficientnet_b0 regnet_y_400mf convnext_tiny swin_t vit_b_16 deeplabv3_resnet50""".split()
TIMM = """vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_atto mixer_s32_224 efficientnet_lite0
mobilevit_xxs pvt_v2_b0 poolformer_s12 xcit_nano_12_p16_224 caformer_s18 nfnet_l0 mixnet_s skresnet18 res2net50_26w_4s levit_128s
maxvit_nano_rw_256 edgenext_xx_small fastvit_t8 efficientformer_l1 ghostnet_100 dla34 hrnet_w18_small repvgg_a0""".split()
TINY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 1}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128}),
    "t5": ("T5Config", "T5ForConditionalGeneration", {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
    "vit": ("ViTConfig", "ViTForImageClassification", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32, "patch_size": 8}),
    "swin": ("SwinConfig", "SwinForImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "clip": ("CLIPConfig", "CLIPModel", {}),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "num_mel_bins": 20, "max_source_positions": 50, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}),
}  # fmt: skip
NAMES = (
    [f"torchvision:{n}" for n in TORCHVISION]
    + [f"timm:{n}" for n in TIMM]
    + [f"transformers:{n}" for n in TINY]
)


def build(name: str) -> tuple[Any, Any]:
    """A model with random weights, and example inputs."""
    import torch

    torch.manual_seed(0)
    zoo, model = name.split(":")
    if zoo == "torchvision":
        import torchvision

        extra = {"aux_logits": False, "init_weights": True} if model in ("googlenet", "inception_v3") else {}
        extra |= {"weights_backbone": None} if "deeplab" in model else {}
        size = 299 if "inception" in model else 160 if "deeplab" in model else 224
        return torchvision.models.get_model(model, weights=None, **extra), torch.randn(1, 3, size, size)
    if zoo == "timm":
        import timm

        net = timm.create_model(model)
        return net, torch.randn(1, *net.pretrained_cfg["input_size"])
    return _tiny(model)


def _tiny(model: str) -> tuple[Any, Any]:
    import torch
    import transformers

    config_class, model_class, options = TINY[model]
    text = {"vocab_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 64, "use_cache": False}
    if model == "clip":
        part = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 32,
        }
        words = {
            **part,
            "vocab_size": 160,
            "max_position_embeddings": 32,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        }
        options = {
            "text_config": words,
            "vision_config": {**part, "image_size": 32, "patch_size": 8},
            "projection_dim": 32,
        }
        text = {}
    elif model in ("vit", "swin"):
        text = {"num_hidden_layers": 2} if model == "vit" else {}
    elif model in ("t5", "gpt2", "whisper"):
        text = {"vocab_size": 160, "use_cache": False}
    net = getattr(transformers, model_class)(getattr(transformers, config_class)(**{**text, **options}))
    ids, images = torch.randint(5, 159, (2, 16)), torch.randn(2, 3, 32, 32)
    inputs = {
        "vit": {"pixel_values": images}, "swin": {"pixel_values": images}, "clip": {"input_ids": ids, "pixel_values": images},
        "t5": {"input_ids": ids, "decoder_input_ids": ids[:, :8]}, "whisper": {"input_features": torch.randn(2, 20, 100), "decoder_input_ids": ids[:, :8]},
    }.get(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})  # fmt: skip
    return net, inputs


def measure(name: str) -> dict[str, Any]:
    """One model, both targets."""
    import torch
    from _peer import torch_pruning

    import prunus
    from prunus.api import execute
    from prunus.capture import capture
    from prunus.inputs import as_inputs
    from prunus.structure import find_structure
    from prunus.surgery import cut, lift

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    net, example = build(name)
    net.eval()
    inputs = as_inputs(example)
    row: dict[str, Any] = {"name": name}
    clock = time.process_time
    torch.export.export(
        torch.nn.Linear(2, 2), (torch.randn(2, 2),), strict=False
    )  # load what export loads once
    t = clock()
    torch.export.export(net, inputs.args, inputs.kwargs, strict=False)
    row["export_s"] = clock() - t
    t = clock()
    captured = capture(net, example)
    row["capture_s"] = clock() - t
    times = []
    for _ in range(3):  # the first pays for what is loaded once
        t = clock()
        structure = find_structure(captured)
        made = prunus.plan(structure, target=prunus.Target(channels=0.5))
        lift(cut(structure, structure.keep_labels(made.keep)))
        times.append(clock() - t)
    row["surgery_s"] = min(times)
    still = _still(copy.deepcopy(net), inputs)
    row["unknown"] = sorted(set(structure.unknown.values()))
    for target in (prunus.Target(channels=0.5), prunus.Target(macs=0.5)):
        started = clock()
        if target.unit == "macs":  # as a user would, export included
            result = prunus.compress(net, example, target=target)
            row["total_s"] = clock() - started
        else:
            result = execute(structure, prunus.plan(structure, target=target))
        report = result.report
        row[target.unit] = {
            "params": report.after.params / report.before.params, "macs": report.after.macs / report.before.macs, "form": report.form,
            "reason": report.form_reason, "error": report.verification["max_relative_error"], "remarks": report.verification["remarks"],
            "exported": _exported(result.model, inputs), "stuck": sorted(_still(result.model, inputs) - still),
        }  # fmt: skip
    heads = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features in (1000, 160)]
    row["torch_pruning_s"] = torch_pruning(net, inputs.args, inputs.kwargs, heads)["torch_pruning_s"]
    return row


def _exported(model: Any, inputs: Any) -> bool:
    import torch

    torch.export.export(model.eval(), inputs.args, inputs.kwargs, strict=False)
    return True


def _still(model: Any, inputs: Any) -> set[str]:
    """Names of the parameters that get no gradient in training, whatever is dropped at random."""
    import torch
    from torch.utils import _pytree as pytree

    model.train()
    double = pytree.tree_map(
        lambda x: torch.cat([x, x]) if isinstance(x, torch.Tensor) else x, (inputs.args, inputs.kwargs)
    )
    still = {name for name, p in model.named_parameters() if p.requires_grad}
    for seed in range(4):
        torch.manual_seed(seed)
        model.zero_grad()
        out = model(*double[0], **double[1])
        loss = sum(
            (x.double() ** 2).mean() + x.double().mean()
            for x in pytree.tree_leaves(out)
            if isinstance(x, torch.Tensor) and x.is_floating_point()
        )
        loss.backward()
        still -= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        if not still:
            break
    return still


def table(rows: list[dict[str, Any]]) -> str:
    import timm
    import torch
    import torchvision
    import transformers

    good = [r for r in rows if "failed" not in r]
    both = [r for r in good if r["torch_pruning_s"] is not None]
    longest = max(good, key=lambda r: r["total_s"])
    ratio = statistics.median(r["surgery_s"] / r["export_s"] for r in good)
    lines = [
        "# Models pruned to half",
        "",
        f"`python benchmarks/models.py`, {date.today()}, torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}; random weights, one thread, CPU seconds.",
        "",
        f"- {len(good)} of {len(rows)} models: pruned at `Target(channels=0.5)` and `Target(macs=0.5)`, verified, exported again, trained one step.",
        f"- Training reaches all parameters that it reaches in the original in {sum(not r[u]['stuck'] for r in good for u in ('channels', 'macs'))} of {2 * len(good)} results.",
        f"- Analysis, plan and surgery against `torch.export` alone: {ratio:.2f} times in the median.",
    ]
    if both:
        peer = statistics.median(r["surgery_s"] / r["torch_pruning_s"] for r in both)
        lines.append(
            f"- Against Torch-Pruning 1.6.1 (build + step) on the {len(both)} models where its result runs: {peer:.2f} times in the median."
        )
    lines.append(
        f"- Came back as the user's own class: {sum(r['channels']['form'] == 'class' for r in good)} at channels, {sum(r['macs']['form'] == 'class' for r in good)} at MACs."
    )
    lines.append(
        f"- Longest call of `prunus.compress(model, inputs, target=prunus.Target(macs=0.5))`, export and verification included: {longest['total_s']:.0f} s ({longest['name']})."
    )
    lines += [
        "",
        "| model | params at channels 0.5 | params at MACs 0.5 | error | form | export s | surgery s | Torch-Pruning s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['name']} | failed: {r['failed']} | | | | | | |")
            continue
        error = max(r["channels"]["error"], r["macs"]["error"])
        peer = f"{r['torch_pruning_s']:.2f}" if r["torch_pruning_s"] is not None else "does not run"
        lines.append(
            f"| {r['name']} | {r['channels']['params']:.3f} | {r['macs']['params']:.3f} | {error:.0e} | {r['channels']['form']}/{r['macs']['form']} "
            f"| {r['export_s']:.2f} | {r['surgery_s']:.2f} | {peer} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only")
    arguments = parser.parse_args()
    if arguments.only:
        name = next(n for n in NAMES if n.split(":")[1] == arguments.only or n == arguments.only)
        print(json.dumps(measure(name)))
        return
    store = HERE / "results" / "models.jsonl"
    done = (
        {json.loads(line)["name"]: json.loads(line) for line in store.read_text().splitlines()}
        if store.exists()
        else {}
    )
    for name in arguments.names or NAMES:
        if name in done:
            continue
        try:
            ran = subprocess.run(
                [sys.executable, __file__, "--only", name], capture_output=True, text=True, timeout=900
            )
            row = (
                json.loads(ran.stdout.splitlines()[-1])
                if ran.returncode == 0
                else {
                    "name": name,
                    "failed": (ran.stderr.strip() or f"exit {ran.returncode}").splitlines()[-1][:300],
                }
            )
        except subprocess.TimeoutExpired:
            row = {"name": name, "failed": "took more than 900 s"}
        done[name] = row
        with store.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, row.get("failed", "ok"), flush=True)
    (HERE / "results" / "models.md").write_text(table([done[n] for n in NAMES if n in done]))


if __name__ == "__main__":
    main()
