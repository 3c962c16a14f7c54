"""Images in an uploaded zip file, read within limits: no file is extracted by a name that the archive chooses."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from svertka.data.file_tree import is_junk_file_name
from svertka.data.image_io import SUFFIXES
from svertka.errors import DataError
from svertka.files import format_bytes
from svertka.serving.request_body_limits import MAX_BODY_BYTES

MAX_MEMBERS = 100_000  # entries, images or not
MAX_TOTAL_BYTES = 8 << 30  # of all images, uncompressed
MAX_RATIO = 200  # of the uncompressed size to that of the whole archive; images hardly compress
SMALL_BYTES = 16 << 20  # uncompressed, up to which the ratio does not matter


@dataclass(frozen=True)
class ZippedImage:
    """An image in an archive.

    Attributes:
        label: Name of the folder that it is in; "" at the top of the archive.
        name: Its file name.
        data: Its bytes; None if it cannot be read.
        reason: Why it cannot be read.
    """

    label: str
    name: str
    data: bytes | None
    reason: str = ""


def read_zip_images(file: BinaryIO, size: int) -> Iterator[ZippedImage]:
    """Yield the images in the zip archive `file` of `size` bytes.

    Other files, links and what systems leave behind are left out.

    Raises:
        DataError: It is not a zip file, or exceeds a limit; what was yielded before is right.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError("the file is not a zip archive, or is damaged; send it again") from error
    with archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise DataError(f"the zip file has {len(members):,} entries; at most {MAX_MEMBERS:,} are read")
        images = [one for one in members if _is_image(one)]
        total = sum(one.file_size for one in images)
        if total > MAX_TOTAL_BYTES or (total > SMALL_BYTES and total > MAX_RATIO * size):
            raise DataError(f"the zip file would unpack to {format_bytes(total)}; send its images in smaller archives")
        left = max(total, SMALL_BYTES)  # the header may understate
        for one in images:
            image = _read(archive, one)
            left -= len(image.data or b"")
            if left < 0:
                raise DataError("the zip file unpacks to more than it says; it is damaged")
            yield image


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ZippedImage:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    label = "" if len(path.parts) < 2 else path.parts[-2]
    reason = "damaged in the zip file"
    if member.flag_bits & 1:
        reason = "encrypted in the zip file"
    elif member.file_size > MAX_BODY_BYTES:
        reason = f"larger than {MAX_BODY_BYTES >> 20} MiB"
    else:
        with (
            suppress(zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError, RuntimeError),
            archive.open(member) as stream,
        ):
            data = stream.read(MAX_BODY_BYTES + 1)
            if len(data) <= MAX_BODY_BYTES:
                return ZippedImage(label, path.name, data)
    return ZippedImage(label, path.name, None, reason)


def _is_image(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    mode = member.external_attr >> 16
    return (
        not member.is_dir()
        and (stat.S_IFMT(mode) in (0, stat.S_IFREG))
        and path.suffix.lower() in SUFFIXES
        and not any(map(is_junk_file_name, path.parts))
    )
