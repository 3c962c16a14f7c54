"""The command `svertka`, and `python -m svertka`, which is also what torchrun starts."""

import sys

from svertka.signals import record_stop


def run() -> int:
    """Run this process's command line and return its exit code."""
    with record_stop() as request:  # while what answers it is loaded
        from svertka.cli.app import main
    return main(asked=request)


if __name__ == "__main__":
    sys.exit(run())
