"""`svertka serve`."""

from typing import Annotated

import typer

from svertka.cli.printing import print_json, print_line


def serve(
    run: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="run folders, or networks with weights: resnet50:imagenet")
    ],
    host: Annotated[
        str, typer.Option(help="the address to listen on; beyond this machine a token is needed, which is printed")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="of the processor; unset: all cores")] = None,
    root_path: Annotated[
        str, typer.Option(help="the path under which a proxy shows the server, such as /svertka")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="a further name of the server, such as its proxy's; may be repeated")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the address as JSON as soon as it answers")] = False,
) -> None:
    """Name pictures on a page, and for programs over HTTP, until Ctrl-C.

    Example: svertka serve runs/photos-resnet18
    """
    import os
    import sys

    # While they wait for one another or for work, threads of the network sleep: by themselves they spin, for which the
    # decoders of the next pictures wait. Read once, as PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from svertka.serving.serve import Place
    from svertka.serving.serve import serve as answer

    def ready(place: Place) -> None:
        if as_json:
            print_json(place.as_json())
        else:
            print_line(f"open {place.url}")
        sys.stdout.flush()

    names = tuple(allow_host or ())
    answer(
        *run,
        host=host,
        port=port,
        device=device,
        threads=threads,
        root_path=root_path,
        allow_hosts=names,
        ready=ready,
    )
