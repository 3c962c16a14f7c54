"""`svertka export`."""

from typing import Annotated

import typer

from svertka.cli.printing import print_json, print_line


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run folder, or a network with weights: resnet50:imagenet")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...", help="pictures or folders to check the file on; unset: some that RUN was trained on"
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="model.onnx, or folder/: weights, config.json and a model card")
    ] = "model.onnx",
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="put it into the file: uint8 RGB in, probabilities out")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="write over what is there, even if svertka did not make it")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Write a network as an ONNX file, checked against the original, or as a folder to publish.

    Example: svertka export runs/photos-resnet18 --to model.onnx
    """
    from svertka.exporters.export import export as write

    written = write(run, to, pictures=images or (), preprocessing=preprocessing, overwrite=overwrite)
    if as_json:
        print_json(written.as_json())
        return
    print_line(f"{written.path}, {written.bytes / 1e6:.1f} MB")
    if written.pictures:
        what = "probabilities" if preprocessing else "logits"
        print_line(f"checked in ONNX Runtime on {written.pictures} pictures: {what} within {written.difference:.1g}")
