"""What people send, in every spelling, and forms and lists that nobody would send on purpose."""

import base64
import json
import random
import urllib.parse
from collections.abc import Callable

import pytest

pytest.importorskip("fastapi")
from svertka.errors import ImageError
from svertka.serving.http_error import HTTPError
from svertka.serving.uploads import MAX_FIELD_BYTES, MAX_IMAGES, decode_base64, parse_form, split_base64_list

DATA = bytes(range(256)) * 3 + b"\xff"  # with every letter of base64, and a padding


def plain(data: bytes) -> str:
    return base64.b64encode(data).decode()


SPELLINGS: dict[str, Callable[[bytes], str]] = {
    "plain": plain,
    "of readAsDataURL": lambda data: f"data:image/jpeg;base64,{plain(data)}",
    "of canvas.toDataURL": lambda data: f"data:image/png;base64,{plain(data)}",
    "a type with a parameter": lambda data: f"DATA:image/jpeg;charset=utf-8;BASE64,{plain(data)}",
    "no type": lambda data: f"data:;base64,{plain(data)}",
    "quoted in an address": lambda data: "data:image/jpeg;base64," + urllib.parse.quote(plain(data), safe=""),
    "lines of base64": lambda data: base64.encodebytes(data).decode(),
    "lines of Windows": lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
    "blanks around": lambda data: f"  \t{plain(data)}\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe without =": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "without =": lambda data: plain(data).rstrip("="),
}
# How encoders of JSON write a string: Python, PHP with escaped slashes, .NET with \u002B, a shell with raw line breaks.
ENCODERS: dict[str, Callable[[str], str]] = {
    "json": lambda text: json.dumps([text]),
    "PHP": lambda text: json.dumps([text]).replace("/", "\\/"),
    ".NET": lambda text: json.dumps([text]).replace("+", "\\u002B"),
    "a shell": lambda text: f'[ "{text}" ]\n',
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("length", [767, 768, 769])
def test_base64_in_every_spelling(spelling: str, encoder: str, length: int) -> None:
    body = ENCODERS[encoder](SPELLINGS[spelling](DATA[:length])).encode()
    (text,) = split_base64_list(bytearray(body))
    assert decode_base64(text) == DATA[:length]


def test_a_list_is_read_as_json_reads_it(large_count: Callable[[int, int], int]) -> None:
    letters = random.Random(0)
    for _ in range(large_count(300, 20_000)):
        strings = [
            "".join(letters.choices('abc/+="\\\n\x7f', k=letters.randrange(9))) for _ in range(letters.randrange(1, 6))
        ]
        body = json.dumps(strings, indent=letters.choice([None, 1])).encode()
        assert [json.loads(b'"' + bytes(one) + b'"') for one in split_base64_list(body)] == strings
        # Cut short or with a letter changed, it is refused as json refuses it, or is a list, too.
        mutant = bytearray(body)
        mutant[letters.randrange(len(mutant))] = letters.choice(b'[]",\\a1 {')
        try:
            value = json.loads(mutant, strict=False)
        except ValueError:
            continue
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            assert len(split_base64_list(mutant)) == len(value)
        else:
            with pytest.raises(HTTPError):
                split_base64_list(mutant)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "A",
        "AAAAA",
        "AA==AA==",
        "A===",
        "====",
        "AAA\x00",
        "A A A A A",
        "data:image/png,%89PNG",
        "data:;base64,*",
        "\\q",
    ],
)
def test_what_is_not_base64(text: str) -> None:
    with pytest.raises(ImageError, match="base64"):
        decode_base64(memoryview(text.encode()))


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"[", b"[]", b'["', b'["a"', b'["a",', b'["a",]', b'["a"]x', b'["a" "b"]', b'"a"', b"[1]", b"[null]",
        b'[["a"]]', b'{"a": "b"}', b'["\xff"]', b'["\\"]', b"[" * 100_000, b'["' + b"\\u0041" * 100_000 + b'"]',
    ],
)  # fmt: skip
def test_what_is_no_list(body: bytes) -> None:
    with pytest.raises(HTTPError) as refused:
        split_base64_list(body)
    assert refused.value.status == 400


def test_a_list_that_is_too_long() -> None:
    assert len(split_base64_list(json.dumps([""] * MAX_IMAGES).encode())) == MAX_IMAGES
    with pytest.raises(HTTPError) as refused:
        split_base64_list(json.dumps([""] * (MAX_IMAGES + 1)).encode())
    assert refused.value.status == 413


def written(*parts: tuple[str, bytes], boundary: str = "----x") -> bytes:
    """A form as curl writes it."""
    text = [
        f"--{boundary}\r\nContent-Disposition: form-data; {header}\r\n\r\n".encode() + data for header, data in parts
    ]
    return b"\r\n".join([*text, f"--{boundary}--\r\n".encode()])


FORM = "multipart/form-data; boundary=----x"


def test_a_form_gives_its_files_in_order_and_its_fields() -> None:
    pictures = [DATA, b"", b"\r\n--", b"\r\n----", b"\r\n------", b"------x"[1:], DATA * 300]
    parts = [(f'name="file"; filename="{number}.jpg"', data) for number, data in enumerate(pictures)]
    found = parse_form(written(('name="top"', b"3"), *parts), FORM)
    assert [bytes(one.content) for one in found.files] == pictures
    assert [one.filename for one in found.files] == [f"{number}.jpg" for number in range(len(pictures))]
    assert found.fields == {"top": "3"}


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        ('name="file"; filename="a b.jpg"\r\nContent-Type: image/jpeg', "a b.jpg"),
        ('name="file"; filename="a\\"b.jpg"', 'a"b.jpg'),
        ('name="file"; filename=""', ""),
        ('NAME="file"; FILENAME="имя.jpg"', "имя.jpg"),
        ('name="file"; filename="\x01\x1b[31m"', "\x01\x1b[31m"),
    ],
)
def test_names_of_files(header: str, filename: str) -> None:
    (file,) = parse_form(written((header, DATA)), FORM).files
    assert file.filename == filename
    assert file.content == DATA


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (written(("name=a; filename=a", DATA)), "multipart/form-data", 400),
        (written(("name=a; filename=a", DATA)), "multipart/form-data; boundary=", 400),
        (written(("name=a; filename=a", DATA)), "multipart/form-data; boundary=other", 400),
        (written(("name=a; filename=a", DATA)), "multipart/form-data; boundary=" + "x" * 10_000, 400),
        (written(("name=a; filename=a", DATA))[:-8], FORM, 400),
        (written(("name=a; filename=a", DATA))[:20], FORM, 400),
        (written(("name=a", b"x")), FORM, 400),
        (written(("name=a; filename=a", b"x"), ("name=top", b"1"), ("name=top", b"2")), FORM, 400),
        (written(("name=a", b"x" * (MAX_FIELD_BYTES + 1))), FORM, 413),
        (written(*[("name=a; filename=a", b"")] * (MAX_IMAGES + 1)), FORM, 413),
        (written(("x" * 100_000, b"x")), FORM, 400),
        (written(("x\r\n" + "a: b\r\n" * 1000, b"x")), FORM, 400),
        (b"", FORM, 400),
        (b"\r" * 100_000, FORM, 400),
        (b"\r-" * 100_000, FORM, 400),
        (DATA, FORM, 400),
    ],
)
def test_forms_that_are_refused(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(HTTPError) as refused:
        parse_form(body, kind)
    assert refused.value.status == status
