"""`svertka export`."""

from typing import Annotated

import typer

from svertka.cli.option_types import AsJson, Overwrite, RunArgument, TrustBuilder
from svertka.cli.printing import print_json, print_line, show_import_spinner


def export(
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Images on which the outputs are compared (default: up to 32 of the images that RUN was trained on; "
            "for an ONNX file in int8, those that it is calibrated on; for a page in int8, validation images).",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="An .onnx file to write; an .html page that classifies images and what the camera sees, offline; or a "
            "folder, such as hub/, for the weights, config.json and a model card."
        ),
    ] = "model.onnx",
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Include the preprocessing: the ONNX file takes uint8 RGB images and returns probabilities.",
        ),
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, or int8 for ONNX Runtime and OpenVINO, in QDQ form; of the weights of a page: int16, int8 or "
            "fp32 (default: fp32, for a page int16)."
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE",
            help="For an ONNX file in int8: images to calibrate on, or a folder of them; repeat it for several "
            "(default: up to 256 of the training images of RUN).",
        ),
    ] = None,
    trust_builder: TrustBuilder = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Export a network as an ONNX file, as a page that works offline, or as a folder to publish.

    The outputs of the ONNX file or page are compared with those of the network.

    Example: svertka export runs/photos-resnet18 --to model.onnx
    """
    with show_import_spinner():
        from svertka.exporters.export import export as write
        from svertka.files import format_bytes

    written = write(
        run,
        to,
        images=images or (),
        preprocessing=preprocessing,
        precision=precision,
        calibration=calibration or (),
        overwrite=overwrite,
        trust_builder=trust_builder,
    )
    if as_json:
        print_json(written.to_dict())
        return
    print_line(f"{written.path}, {format_bytes(written.bytes)}")
    if written.int8 is not None or written.page is not None:
        print_line(written.sentence)
    elif written.images:
        what = "probabilities" if preprocessing else "logits"
        print_line(f"checked in ONNX Runtime on {written.images} images: {what} within {written.difference:.1g}")
