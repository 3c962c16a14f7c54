"""Execute the notebooks of the documentation and store them with their results, docs/notebooks/*.ipynb.

Figures are stored as PNG with 64 colors, or as JPEG where that is smaller. Prints the wall time, the CPU time and the
size of each notebook.

    SVERTKA_DATA=… python experiments/execute_notebooks.py [03_gradients_and_transposed_convolution …]
"""

import argparse
import base64
import io
import resource
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
TIMEOUT = 3000  # seconds for each cell, on a busy machine
COLORS, JPEG_QUALITY = 64, 60


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks (default: all)")
    for name in parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        execute(FOLDER / f"{name}.ipynb")


def execute(path: Path) -> None:
    """Execute a notebook in a new kernel and store it."""
    notebook = nbformat.read(path, as_version=4)
    began, before = time.perf_counter(), cpu_seconds()
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    taken, cpu = time.perf_counter() - began, cpu_seconds() - before
    shrink(notebook)
    nbformat.write(notebook, path)
    print(f"{path.stem}: {taken:.0f} s, {cpu:.0f} s CPU, {path.stat().st_size / 1000:.0f} kB", flush=True)


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Remove progress and metadata from the results, and compress the figures."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata.clear()
            if "image/png" in output.get("data", {}):
                output.data |= compress(output.data.pop("image/png"))
    notebook.metadata.pop("language_info", None)


def is_progress(output: nbformat.NotebookNode) -> bool:
    """Return whether an output is a line of progress, which is not stored."""
    shown = output.get("data", {}).get("text/html", "")
    return output.get("name") == "stderr" or (output.output_type == "display_data" and shown.startswith("<pre "))


def cpu_seconds() -> float:
    """Return the CPU time of all kernels that have ended, seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compress(png: str) -> dict[str, str]:
    """Return an image, PNG in base64, by its MIME type: PNG with `COLORS`, or JPEG where that is smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    as_png, as_jpeg = io.BytesIO(), io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(as_png, "PNG", optimize=True)
    image.save(as_jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
    smaller = min(("image/png", as_png), ("image/jpeg", as_jpeg), key=lambda pair: pair[1].tell())
    return {smaller[0]: base64.b64encode(smaller[1].getvalue()).decode()}


if __name__ == "__main__":
    main()
