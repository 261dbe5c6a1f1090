"""``prunus compress``: everything in one go."""

from prunus.cli import options
from prunus.cli.progress import step
from prunus.cli.results import save_result
from prunus.cli.sources import note_random_weights, open_source

__all__ = ["compress"]


def compress(
    source: options.Source,
    output: options.Folder,
    method: options.Method = "l2",
    channels: options.Channels = None,
    params: options.Params = None,
    macs: options.Macs = None,
    size: options.Size = None,
    hold: options.Hold = None,
    multiple_of: options.MultipleOf = 1,
    keep_class: options.KeepClass = False,
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
      prunus compress model.pt2 -o out --size 0.25 --multiple-of 8 --onnx
    """
    target = options.target_of(channels, params, macs, size)
    from prunus.api import analyze, execute
    from prunus.artefact import require_savable
    from prunus.decide import plan

    require_savable(output, overwrite=overwrite, onnx=onnx)
    opened = open_source(source, inputs or (), weights=weights, pretrained=pretrained, seed=seed)
    note_random_weights(opened)
    with step("Analyzing the model"):
        structure = analyze(opened.model, opened.example_inputs, keep_class=keep_class)
    with step("Deciding what stays"):
        made = plan(
            structure,
            method=options.method_of(method, seed),
            target=target,
            hold=hold or (),
            multiple_of=multiple_of,
            seed=seed,
        )
    with step("Cutting" if no_verify else "Cutting and verifying"):
        result = execute(structure, made, verify=not no_verify)
    save_result(result, output, overwrite=overwrite, onnx=onnx)
