import functools
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from svertka.errors import UsageError
from svertka.models.external_builder import (
    GRAPH,
    BuilderRecord,
    absolute_target,
    fingerprint_source_code,
    import_function,
    import_target_and_arguments,
    require_consent,
)

SOURCE = """
import helper
from torch import nn

class Own(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.fc = nn.Linear(width, classes)

def build(classes, width=4):
    return Own(classes, width)

answer = 42
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("")
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def top_level(classes: int, width: int = 4) -> nn.Module:
    return nn.Linear(width, classes)


def test_a_function_of_a_file_is_imported_with_the_files_beside_it(file: Path) -> None:
    path = list(sys.path)
    assert import_function(f"{file}:build")(3).fc.out_features == 3
    assert import_function(f"{file}:Own")(2).fc.out_features == 2
    assert sys.path == path


def test_a_function_of_a_module_in_the_current_folder_is_imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    try:
        assert import_function("own:build")(3).fc.out_features == 3
    finally:
        sys.modules.pop("own", None)


WRONG = {
    "no such file": ("{folder}/other.py:build", "there is no file {folder}/other.py; put it there"),
    "no such function": ("{folder}/own.py:make", "there is no function make in it; it has build; name one"),
    "no function": ("{folder}/own.py:answer", "there is no function answer in it"),
    "no such module": ("no_such_package.networks:build", "(ModuleNotFoundError: No module named 'no_such_package')"),
    "a syntax error": ("{folder}/broken.py:build", "cannot be imported (SyntaxError:"),
    "an exit": ("{folder}/leaves.py:build", "cannot be imported (SystemExit: bye)"),
    "no name": ("{folder}/own.py:", "is not the name of a builder; write package.module:function or file.py:function"),
    "a command": ("os;system:x()", "is not the name of a builder"),
    "an address": ("http://example.com:build", "is not the name of a builder"),
    "a call": ("{folder}/own.py:build(3)", "is not the name of a builder"),
    "a folder": ("{folder}/folder.py:build", "there is no file {folder}/folder.py; put it there"),
    "an empty file": ("{folder}/helper.py:build", "there is no function build in it; name one that takes"),
    "bytes": ("{folder}/bytes.py:build", "(SyntaxError: source code string cannot contain null bytes)"),
    "a missing import": ("{folder}/needs.py:build", "(ModuleNotFoundError: No module named 'no_such_package')"),
    "an error of two lines": ("{folder}/raises.py:build", "cannot be imported (RuntimeError: one); fix it"),
    "an error without words": ("{folder}/asserts.py:build", "cannot be imported (AssertionError); fix it"),
    "an attribute of a function": ("{folder}/own.py:build.x", "there is no function build.x in it; it has build"),
}
BROKEN = {
    "broken": b"def (",
    "leaves": b"raise SystemExit('bye')",
    "bytes": b"\0\1",
    "needs": b"import no_such_package",
    "raises": b"raise RuntimeError('one\\ntwo')",
    "asserts": b"assert False",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_builder_that_cannot_be_imported_is_one_sentence(kind: str, file: Path) -> None:
    for name, content in BROKEN.items():
        (file.parent / f"{name}.py").write_bytes(content)
    (file.parent / "folder.py").mkdir()
    target, sentence = (text.format(folder=file.parent) for text in WRONG[kind])
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        import_function(target)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_longer_than_any_path_is_one_sentence() -> None:
    with pytest.raises(
        UsageError, match=r"^a+…a+\.py:build is too long for the name of a builder; move its file to another folder$"
    ):
        absolute_target("a" * 5000 + ".py:build")


INTRUSIVE = """
import os, torch
print("imported")
os.chdir("/")
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_num_threads(torch.get_num_threads() + 1)
def build(classes): return None
"""


def test_what_an_import_changes_in_the_process_is_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "intrusive.py").write_text(INTRUSIVE)

    def state() -> tuple[object, ...]:
        return Path.cwd(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()

    before = state()
    import_function(f"{tmp_path}/intrusive.py:build")
    assert state() == before
    assert capsys.readouterr() == ("", "imported\n")  # stdout is for results


def test_consent_is_asked_for_all_that_runs_code_of_unknown_origin() -> None:
    for target, what in (("evil:build", "with evil:build, whose code is run"), (GRAPH, "from its exported graph")):
        with pytest.raises(UsageError, match=f"runs/x builds its network {what}.*give --trust-builder"):
            require_consent(BuilderRecord(target=target), "runs/x", trust_builder=False)
        require_consent(BuilderRecord(target=target), "runs/x", trust_builder=True)
    for target in ("timm:resnet18", "torchvision:resnet18"):
        require_consent(BuilderRecord(target=target), "runs/x", trust_builder=False)


@pytest.mark.parametrize("target", ["timm.evil:build", "./timm:x.py:build", "timmy:build", "torchvision_:x", " timm:x"])
def test_only_the_packages_themselves_need_no_consent(target: str) -> None:
    with pytest.raises(UsageError, match="--trust-builder"):
        require_consent(BuilderRecord(target=target), "runs/x", trust_builder=False)


def test_a_function_is_described_by_its_importable_name() -> None:
    here = f"{__name__}:top_level"
    assert import_target_and_arguments(top_level) == (here, {})
    assert import_target_and_arguments(functools.partial(top_level, width=8)) == (here, {"width": 8})
    assert import_target_and_arguments(nn.Linear) == ("torch.nn.modules.linear:Linear", {})
    for unimportable in (
        lambda classes: nn.Linear(4, classes),
        functools.partial(top_level, 4),
        functools.partial(top_level, width=object()),
    ):
        assert import_target_and_arguments(unimportable) is None


def test_the_path_of_a_file_is_stored_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert absolute_target("own.py:build") == f"{file.resolve()}:build"
    assert absolute_target("package.module:build") == "package.module:build"


def test_the_fingerprint_is_that_of_the_source_of_function_and_layers(file: Path) -> None:
    build = import_function(f"{file}:build")
    before = fingerprint_source_code(build, build(3))
    assert before == fingerprint_source_code(functools.partial(build, width=5), build(3, width=5))
    os.utime(file)
    assert fingerprint_source_code(build, build(3)) == before
    file.write_text(SOURCE + "# changed\n")
    assert fingerprint_source_code(build, build(3)) != before
    assert fingerprint_source_code(print, nn.Linear(1, 1)) is None
