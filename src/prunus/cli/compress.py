"""``prunus compress``: everything in one go."""

import typer

from prunus.cli import options
from prunus.cli.deciding import Wanted, goal_of
from prunus.cli.progress import step, watched
from prunus.cli.results import save_result
from prunus.cli.sources import note_random_weights, open_source

__all__ = ["compress"]


def compress(
    source: options.Source,
    output: options.Folder,
    method: options.Method = None,
    channels: options.Channels = None,
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
    ratio: options.Ratio = None,
    allocation: options.Allocation = None,
    data: options.Data = None,
    batch_size: options.BatchSize = 32,
    recover: options.Recover = True,
    bias: options.Bias = False,
    checkpoint: options.Checkpoint = None,
    hold: options.Hold = None,
    multiple_of: options.MultipleOf = 1,
    layer_norm: options.LayerNorm = None,
    policy: options.Policy = None,
    group_policy: options.GroupPolicy = None,
    step_size: options.StepSize = None,
    step_op: options.StepOp = None,
    reshape_channel_axis: options.ChannelAxis = None,
    keep_class: options.ClassFirst = None,
    dynamic: options.Dynamic = None,
    free: options.Free = None,
    drop: options.Drop = None,
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    no_verify: options.NoVerify = False,
    onnx: options.Onnx = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
) -> None:
    """Make a model smaller, and write it to a folder.

    The folder gets the plan, the weights, a model that loads without its code, and a report.

    Examples:
      prunus compress timm:resnet50 --pretrained -o out --macs 0.5
      prunus compress torchvision:vgg16 --weights vgg16.pth -o out --params 0.3
      prunus compress mymodels.net:build -o out --channels 0.5 --hold 'head.*'
      prunus compress timm:resnet50 -o out --ratio 0.3 --allocation slamp
      prunus compress timm:resnet50 --pretrained -o out --macs 0.7 --data images.npy
      prunus compress timm:resnet50 -o out --macs 0.5 --method nuclear_norm --data images.npy --no-recover
      prunus compress model.pt2 -o out --size 0.25 --multiple-of 8 --onnx
    """
    wanted = Wanted(
        method,
        goal_of(channels, params, macs, size, ratio, method),
        allocation,
        options.options_of(
            layer_norm=layer_norm,
            policy=policy,
            group_policy=group_policy,
            step_size=step_size,
            step_op=step_op,
            reshape_channel_axis=reshape_channel_axis,
        ),
        tuple(hold or ()),
        multiple_of,
        seed,
        data,
        batch_size,
    )
    from prunus.api import analyze, execute
    from prunus.api.class_first import class_first
    from prunus.artefact import require_savable
    from prunus.recovery import STEPS, Checkpoint

    if checkpoint is not None and data is None:
        raise typer.BadParameter("without --data there is nothing to note.", param_hint="--checkpoint")
    require_savable(output, overwrite=overwrite, onnx=onnx)
    wanted.check()
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    with step("Analyzing the model"):
        structure = analyze(
            opened.model,
            opened.example_inputs,
            outputs=options.outputs_of(free, drop),
            dynamic=options.dynamic_of(dynamic),
        )
    given = wanted.batches
    noted = None if checkpoint is None else Checkpoint(checkpoint, structure.captured, given)
    made, notes = class_first(structure, lambda asked: wanted.plan(asked, noted), keep_class)
    batches = given if recover else None
    with watched("Cutting" if no_verify else "Cutting and verifying", "layer") as progress:
        result = execute(
            made.structure,
            made.plan,
            tried=made,
            notes=notes,
            verify=not no_verify,
            data=batches,
            steps=STEPS if batches is not None else (),
            allow_bias=bias,
            progress=progress,
            checkpoint=noted,
        )
    save_result(result, output, overwrite=overwrite, onnx=onnx)
    if noted:
        noted.remove()
