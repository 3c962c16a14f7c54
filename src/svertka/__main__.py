"""The command `svertka`, and `python -m svertka`, which is also what torchrun starts."""

import gc
import sys
import warnings

from svertka.escaping import to_printable
from svertka.signals import record_stop


def run() -> int:
    """Run this process's command line and return its exit code."""
    gc.set_threshold(20_000)  # with Python's 700, a tenth of PyTorch's import is spent looking for garbage
    with record_stop() as request:  # while what answers it is loaded
        from svertka.cli.app import main
    warnings.formatwarning = format_warning
    return main(asked=request)


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return the line that the command line prints for a warning, without the line of code that gave it."""
    return f"warning: {to_printable(str(message))}\n"


if __name__ == "__main__":
    sys.exit(run())
