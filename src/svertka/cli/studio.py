"""`svertka studio`."""

from typing import Annotated

import typer

from svertka.cli.option_types import AsJson, Threads
from svertka.cli.printing import print_json, print_line, show_import_spinner


def studio(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            help="Data sets, each a folder with one folder of images per class; created if missing (default: photos).",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind to. Remote clients need the printed token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free port.")] = 8000,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Collect images, train on them, try the network and export it, on web pages, until Ctrl-C.

    Example: svertka studio photos/
    """
    import os
    import sys

    # As for svertka serve: waiting threads of the network sleep instead of taking cores from the decoders.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with show_import_spinner():
        from svertka.serving.serve import ServerAddress
        from svertka.studio.studio import run_studio

    def ready(place: ServerAddress) -> None:
        if as_json:
            print_json(place.to_dict())
        else:
            print_line(f"open {place.url}")
        sys.stdout.flush()

    run_studio(folders or ["photos"], host=host, port=port, threads=threads, ready=ready)
