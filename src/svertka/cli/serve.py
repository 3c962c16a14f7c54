"""`svertka serve`."""

from typing import Annotated

import typer

from svertka.cli.option_types import Device, Precision, Threads, TrustBuilder
from svertka.cli.printing import print_json, print_line, show_import_spinner


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, or networks with weights, such as resnet50:imagenet."),
    ],
    host: Annotated[str, typer.Option(help="Address to bind to. Remote clients need the printed token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free port.")] = 8000,
    trust_builder: TrustBuilder = False,
    precision: Precision = None,
    device: Device = "auto",
    threads: Threads = None,
    root_path: Annotated[str, typer.Option(help="URL path under which a proxy serves svertka, such as /svertka.")] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Additional host name to accept, such as the name of a proxy. May be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address as JSON as soon as the server is ready.")
    ] = False,
) -> None:
    """Serve predictions on a web page and over HTTP until Ctrl-C.

    Example: svertka serve runs/photos-resnet18
    """
    import os
    import sys

    # Waiting threads of the network sleep instead of spinning, which would take cores from the decoders. PyTorch reads
    # this once, when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with show_import_spinner():
        from svertka.serving.serve import ServerAddress
        from svertka.serving.serve import serve as answer

    def ready(place: ServerAddress) -> None:
        if as_json:
            print_json(place.to_dict())
        else:
            print_line(f"open {place.url}")
        sys.stdout.flush()

    names = tuple(allow_host or ())
    answer(
        *runs,
        host=host,
        port=port,
        device=device,
        threads=threads,
        root_path=root_path,
        allow_host=names,
        trust_builder=trust_builder,
        precision=precision,
        ready=ready,
    )
