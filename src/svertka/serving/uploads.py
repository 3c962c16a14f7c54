"""Parsers of request bodies: a JSON list of images in base64, and a form with files (curl -F).

They take linear time and little more memory than the body, whatever it contains.
"""

import binascii
import json
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from svertka.errors import ImageError
from svertka.serving.http_error import HTTPError

MAX_IMAGES = 64  # images in one list or form
MAX_FIELD_BYTES = 1024  # of a form field other than a file
MAX_HEADER_BYTES = 4096  # of one header of a form part
ESCAPED = 8  # a JSON list may have one backslash per this many bytes; base64 has one in twenty at most
CHUNK = 1 << 16  # of a form that are parsed between checks of the limits

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # damaged forms are not errors of the server

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_START = re.compile(rb"\s*+\[\s*+")
# Possessive, for linear time. Raw line breaks are not JSON, but `base64 FILE` writes them.
_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)"\s*+(,|\])\s*+', re.DOTALL)
_ADDRESS = re.compile(rb"\s*+data:([^,]{0,200}+),", re.IGNORECASE)
_QUOTED = (
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%2F", b"/"),
    (b"%2f", b"/"),
    (b"%3D", b"="),
    (b"%3d", b"="),
    (b"%0A", b""),
)
_BLANKS = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def split_base64_list(body: bytes | bytearray) -> list[memoryview]:
    """Return the raw strings of the JSON list in `body`, without quotation marks, for `decode_base64`.

    Raises:
        HTTPError: 400, it is not a list of strings; 413, the list is too long.
    """
    if not body.isascii() or body.count(b"\\") > len(body) // ESCAPED + 100:
        raise HTTPError(400, "the body is not a JSON list of images in base64")
    whole = memoryview(body)
    found = _START.match(body)
    strings: list[memoryview] = []
    end = found.end() if found else 0
    while found is not None:
        if len(strings) == MAX_IMAGES:
            raise HTTPError(413, f"a list may have at most {MAX_IMAGES} images")
        found = _STRING.match(body, end)
        if found is not None:
            strings.append(whole[found.start(1) : found.end(1)])
            end = found.end()
            if found[2] == b"]" and end == len(body):
                return strings
            if found[2] == b"]":
                break
    raise HTTPError(400, "the body is not a JSON list of images in base64")


def decode_base64(text: memoryview) -> bytes:
    """Decode a raw JSON string with base64 or a data: URL.

    Accepts line breaks, the URL-safe alphabet and missing padding.

    Raises:
        ImageError: It is not base64.
    """
    content = bytes(text)
    if b"\\" in content:
        try:
            content = json.loads(b'"' + content + b'"', strict=False).encode()
        except ValueError as error:
            raise ImageError("not base64") from error
    address = _ADDRESS.match(content)
    if address is not None:
        if not address[1].lower().endswith(b";base64"):
            raise ImageError("a data: URL that is not in base64")
        content = content[address.end() :]
        for written, letter in _QUOTED:
            content = content.replace(written, letter)
    content = content.translate(_URL_SAFE, _BLANKS)
    bare = content.rstrip(b"=")
    if len(content) - len(bare) > 2 or len(bare) % 4 == 1 or bare.translate(None, _ALPHABET):
        raise ImageError("not base64")
    return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4))


@dataclass
class FormPart:
    """A part of a form; one with a `filename` is a file."""

    name: str = ""
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)


@dataclass
class Form:
    """The files of a form in order, and its other fields by name."""

    files: list[FormPart] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def parse_form(body: bytes | bytearray, content_type: str) -> Form:
    """Parse the multipart/form-data in `body`, whose boundary is in the header `content_type`.

    Raises:
        HTTPError: 400, it is damaged or has no file; 413, it has too many parts or a field that is too long.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise HTTPError(400, "multipart/form-data needs a boundary")
    reader = _FormReader()
    try:
        parser = MultipartParser(boundary, reader.callbacks(), max_header_count=8, max_header_size=MAX_HEADER_BYTES)
        for start in range(0, len(body), CHUNK):
            parser.write(bytes(body[start : start + CHUNK]))
        parser.finalize()
    except FormParserError as error:
        raise HTTPError(400, "the form is damaged") from error
    if not reader.ended:
        raise HTTPError(400, "the form is cut off")
    if not reader.form.files:
        raise HTTPError(400, "the form has no file; send images as in curl -F file=@image.jpg")
    return reader.form


class _FormReader:
    """Collects the parts of a form as the parser finds them."""

    def __init__(self) -> None:
        self.form, self.ended = Form(), False
        self._part = FormPart()
        self._parts = 0
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._part = FormPart()
        self._parts += 1
        if self._parts > MAX_IMAGES:
            raise HTTPError(413, f"a form may have at most {MAX_IMAGES} images")

    def _header(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            options = parse_options_header(bytes(self._value))[1]
            self._part.name = options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                self._part.filename = options[b"filename"].decode(errors="replace")
        self._name.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._part.content += data[start:end]
        if self._part.filename is None and len(self._part.content) > MAX_FIELD_BYTES:
            raise HTTPError(413, f"a form field may have at most {MAX_FIELD_BYTES} bytes; send images as files")

    def _end(self) -> None:
        if self._part.filename is not None:
            self.form.files.append(self._part)
        elif self._part.name in self.form.fields:
            raise HTTPError(400, f"the form has more than one {self._part.name[:80]}")
        else:
            self.form.fields[self._part.name] = self._part.content.decode(errors="replace")

    def _finish(self) -> None:
        self.ended = True
