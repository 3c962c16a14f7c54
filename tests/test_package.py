import importlib
import subprocess
import sys
import warnings
from importlib import resources
from pathlib import Path

import pytest

import svertka
from svertka.__main__ import run


def test_the_public_names() -> None:
    assert svertka.__all__ == [
        "Classifier", "Optimized", "Recipe", "Repeats", "Run", "SvertkaError",
        "ablate", "accelerate", "calibrate", "check", "compare", "compare_units", "evaluate", "export", "extend",
        "list_models", "locate", "look",
        "optimize", "optimize_run", "predict", "restore", "resume", "serve", "shard", "similar", "suggest", "summary",
        "train",
        "tune",
    ]  # fmt: skip
    assert svertka.conv.conv2d is importlib.import_module("svertka.conv.api").conv2d
    assert dir(svertka) == svertka.__all__
    assert all(callable(getattr(svertka, name)) for name in svertka.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        svertka.fly  # noqa: B018


def test_no_public_name_is_borne_by_a_submodule() -> None:
    folder = Path(svertka.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(svertka.__all__)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import svertka", "torch numpy PIL sklearn pydantic"),
        ("from svertka.cli.app import main; main(['--help'])", "torch numpy PIL sklearn pydantic"),
        ("import svertka.training.single_run, svertka.serving.app", "sklearn scipy matplotlib"),
    ],
)
def test_heavy_packages_wait_for_what_needs_them(code: str, heavy: str) -> None:
    probe = f"{code}\nimport sys; print([name for name in {heavy.split()} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_every_module_imports_by_itself() -> None:
    folder = Path(svertka.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_type_checkers_read_its_annotations() -> None:
    assert resources.files("svertka").joinpath("py.typed").is_file()


def test_the_command_line_prints_a_warning_without_the_code_that_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["svertka", "--version"])
    assert run() == 0
    line = warnings.formatwarning(UserWarning("few\nimages"), UserWarning, "optimize_run.py", 201, "made = optimize(")
    assert line == "warning: few\\nimages\n"
