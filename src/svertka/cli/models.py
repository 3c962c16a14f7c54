"""`svertka models`."""

from typing import Annotated, Any

import typer

from svertka.cli.option_types import AsJson
from svertka.cli.printing import print_json, print_line, print_table, show_import_spinner


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Network whose layers are listed, also timm:NAME, torchvision:NAME, file.py:function or "
            "module:function (default: list all networks).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the available networks with their size and source, or the layers of one network.

    Example: svertka models vgg16
    """
    with show_import_spinner():
        from svertka.graph.layer_table import COLUMNS, layer_rows
        from svertka.models import external, registry

    if name is None:
        facts = external.list_models()
        if as_json:
            print_json(facts)
            return
        rows = [("name", "parameters", "multiply-adds", "input", "top-1", "top-5", "crops", "of", "source")]
        for one in facts:
            counts = f"{one['parameters']:,}", f"{one['multiply_adds']:,}"
            plainest = _errors(one["published"][0]) if one["published"] else ("",) * 4
            rows.append((one["name"], *counts, "×".join(map(str, one["input"])), *plainest, one["source"]))
        print_table(rows, right=(1, 2, 4, 5), shrink=(8, 7, 6), drop=(8, 7, 6, 3, 5), prose=(6, 7, 8))
        print_line("top-1, top-5: reported error, %; svertka models NAME lists all and their sources")
        return
    if as_json:
        print_json(external.list_models(name)[0])
        return
    model = external.open_model(name)
    trace = registry.trace_model(model)
    source = "" if model.source == name else f": {model.source}"
    print_line(f"{name} on {'×'.join(map(str, model.input_shape))} pixels{source}")
    if reported := registry.describe_model(model)["published"]:
        print_line()
        print_line("Reported errors, %")
        header = ("top-1", "top-5", "crops", "of", "source", "note")
        print_table(
            [header, *((*_errors(one), one["source"], one["note"]) for one in reported)],
            right=(0, 1),
            shrink=(5, 4),
            drop=(5, 4),
            prose=(4, 5),
        )
        print_line()
    print_table(layer_rows(trace), **COLUMNS)


def _errors(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    """Format top-1 and top-5 error in percent, the protocol and the dataset."""
    top1, top5 = ("" if figure[key] is None else str(figure[key]) for key in ("top1_error", "top5_error"))
    return top1, top5, figure["protocol"], figure["dataset"]
