"""Archives as friends and enemies make them."""

import io
import zipfile
from collections.abc import Callable

import pytest

from svertka.errors import DataError
from svertka.studio.zip_images import ZippedImage, read_zip_images


def read(data: bytes) -> list[ZippedImage]:
    return list(read_zip_images(io.BytesIO(data), len(data)))


def archive(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def test_folders_are_classes_and_paths_lead_nowhere(photograph: Callable[..., bytes]) -> None:
    link = zipfile.ZipInfo("cat/link.jpg")
    link.external_attr = 0o120777 << 16
    some = photograph(20, 1)
    found = read(
        archive(
            ("photos/cat/1.jpg", some),
            ("../../dog/2.jpg", some),
            ("/etc\\bird\\3.jpg", some),
            ("4.png", some),
            ("__MACOSX/cat/._1.jpg", some),
            ("cat/notes.txt", some),
            (link, b"/etc/passwd"),
        )
    )
    assert [(one.label, one.name, one.data == some) for one in found] == [
        ("cat", "1.jpg", True),
        ("bird", "3.jpg", True),
        ("", "4.png", True),
    ]


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    with pytest.raises(DataError, match="would unpack to 20"):
        read(archive(*((f"cat/{number}.jpg", bytes(2_000_000)) for number in range(10))))


def test_what_understates_its_size_or_is_damaged_is_left_out(photograph: Callable[..., bytes]) -> None:
    some = photograph(20, 1)
    whole = archive(("cat/1.jpg", some), compression=zipfile.ZIP_STORED)
    (found,) = read(whole.replace(some[100:200], bytes(100)))
    assert (found.data, found.reason) == (None, "damaged in the zip file")
    for broken in (b"", b"PK", whole[: len(whole) // 2], some):
        with pytest.raises(DataError, match="not a zip archive"):
            read(broken)
