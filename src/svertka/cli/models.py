"""`svertka models`."""

from typing import Annotated

import typer

from svertka.cli.output import print_json, print_table


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one network; unset: all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """List the networks that can be trained, with their size and source.

    Example: svertka models lenet5
    """
    from svertka.models import zoo

    facts = [zoo.facts(model) for model in ([zoo.find(name)] if name else zoo.MODELS.values())]
    if as_json:
        print_json(facts)
        return
    rows = [("name", "parameters", "multiply-adds", "input", "source", "published")]
    for one in facts:
        counts = f"{one['parameters']:,}", f"{one['multiply_adds']:,}"
        rows.append((one["name"], *counts, "×".join(map(str, one["input"])), one["source"], one["published"] or ""))
    print_table(rows, right="12")
