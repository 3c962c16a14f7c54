"""The folder of real data that benchmarks read."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder that the environment variable SVERTKA_DATA names.

    Raises:
        SystemExit: It is not set, or is no folder.
    """
    given = os.environ.get("SVERTKA_DATA")
    if not given or not Path(given).is_dir():
        found = f"SVERTKA_DATA={given} is no folder" if given else "SVERTKA_DATA is not set"
        raise SystemExit(f"{found}; set it to the folder of the data sets")
    return Path(given).resolve()
