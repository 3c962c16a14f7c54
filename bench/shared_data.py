"""The folder of real data that benchmarks read."""

from pathlib import Path

from svertka.data import builtin
from svertka.errors import UsageError


def data_folder() -> Path:
    """Return the folder that the environment variable SVERTKA_DATA names.

    Raises:
        SystemExit: It is not set, or is no folder.
    """
    try:
        return builtin.data_folder()
    except UsageError as error:
        raise SystemExit(str(error)) from None
