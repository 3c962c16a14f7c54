"""Hostile values for every file and argument that svertka reads: import what you need, and add what you miss.

TEXTS                   what a class, a file or an option may be called; none holds a slash or a NUL
PATHS                   what may be given where a path is wanted; DEVICES: where one is wanted to read from
NUMBERS                 what may be written where a number is wanted
json_documents(good)    `good` with each of its values in turn made hostile, and damaged as a whole; bytes
xml_documents(good)     the same of an XML text
csv_documents(good)     the same of a CSV text
files(folder, suffix)   things in a folder that are no readable file, by what they are

The sequences are the same each time. None of them allocates more than some megabytes, none waits.
"""

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEEP = 100_000

TEXTS = {
    "color": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;title\x07",
    "clear": "\x1b[2J\x1b[H",
    "newline": "two\nlines",
    "return": "good\rbad",
    "bell and backspace": "a\x07b\x08c",
    "C1": "a\x9b31mb",
    "override": "a\u202egpj.exe",
    "isolate": "a\u2069\u2066b",
    "line separator": "a\u2028b\u2029c",
    "zero width": "a\u200bb\ufeffc",
    "tags": "a\U000e0041b",
    "no UTF-8": os.fsdecode(b"latin\xe9"),
    "formula": "=1+1",
    "command": "=cmd|'calc'!A0",
    "plus": "+1",
    "minus": "-1",
    "at": "@SUM(A1)",
    "tab": "\t=1",
    "markup": "<script>alert(1)<!--",
    "attribute": "\" onerror='x' &amp;",
    "quote": 'it\'s "quoted"',
    "backslash": "a\\nb\\",
    "shell": "$(reboot) `x`; rm -rf ~ #",
    "YAML": "a: b\n---\n- c # d",
    "Markdown": "[x](javascript:1) `` | *b*",
    "braces": "{0} %s %n ${x}",
    "comma": "a,b;c\td",
    "dash": "-dash",
    "option": "--help",
    "space": " ",
    "dots": "...",
    "emoji": "👩\u200d🔬",
    "Arabic": "قطة",
    "decomposed": "cafe\u0301",
    "long": "n" * 250,
}

PATHS = {
    **TEXTS,
    "nothing": "",
    "no such user": "~nosuchuser/x",
    "long name": "x" * 300,
    "long path": "a/" * 3000 + "x",
    "NUL": "a\0b",
    "here": ".",
    "above": "..",
    "root": "/",
    "below a file": "/dev/null/x",
    "scheme": "https://example.org/x",
    "Windows": "C:\\photos\\x",
}

# Only to be read from: root could overwrite them.
DEVICES = {"device": "/dev/null", "endless": "/dev/urandom", "full": "/dev/full", "process": "/proc/self/mem"}

NUMBERS = {
    "NaN": "NaN",
    "infinity": "inf",
    "minus infinity": "-Infinity",
    "overflow": "1e400",
    "underflow": "1e-400",
    "digits": "9" * 5000,
    "big": str(10**30),
    "minus": "-1",
    "zero": "0",
    "half": "0.5",
    "hexadecimal": "0x10",
    "fullwidth": "１２",
    "underscore": "1_0",
    "word": "many",
    "nothing": "",
}

# As JSON writes them, so that what Python cannot write is among them.
JSON_VALUES = [
    "null",
    "true",
    '""',
    '"."',
    '"..//"',
    '"a\\u0000b"',
    '"\\ud800"',
    "[]",
    "{}",
    "[[]]",
    '[{"id": [1]}]',
    "-1",
    "0.5",
    "1e400",
    "NaN",
    "-Infinity",
    "9" * 5000,
    str(2**63),
    '"' + "x" * 300 + '"',
    '{"a": {"b": [null]}}',
]


def json_documents(good: Any) -> Iterator[bytes]:
    """The JSON value `good` damaged: as a whole, then at each place by each of JSON_VALUES, then by a missing part."""
    whole = json.dumps(good).encode()
    yield from _damaged(whole)
    yield b"[" * DEEP
    yield b"[" * DEEP + b"]" * DEEP
    yield b'{"a":' * DEEP + b"1" + b"}" * DEEP
    yield from (value.encode() for value in JSON_VALUES)
    mark = "\x01place"
    for place in _places(good):
        changed = _with(good, place, mark)
        text = json.dumps(changed)
        yield from (text.replace(json.dumps(mark), value).encode() for value in JSON_VALUES)
        yield json.dumps(_without(good, place)).encode()


def xml_documents(good: str) -> Iterator[bytes]:
    """The XML text `good`, without a declaration, damaged; in other encodings; with other numbers in its elements."""
    yield from _damaged(good.encode())
    for encoding in ("shift_jis", "big5", "gbk", "utf-7", "utf-16", "utf-32", "koi8-r", "cp037", "nosuch", "rot13", ""):
        declared = f'<?xml version="1.0" encoding="{encoding}"?>{good}'
        yield declared.encode()
        try:
            yield declared.encode(encoding or "utf-8", "replace")
        except LookupError:
            continue
    yield b"<a>" * DEEP
    yield b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 99 + b'"><!ENTITY b "' + b"&a;" * 99 + b'">]><x>&b;</x>'
    bombs = b"".join(b'<!ENTITY %c "%s">' % (98 + k, (b"&%c;" % (97 + k)) * 10) for k in range(9))
    yield b'<!DOCTYPE x [<!ENTITY a "ha">' + bombs + b"]><x>&j;</x>"
    yield b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'
    pieces = good.split(">")
    for number, piece in enumerate(pieces):
        content, opened, rest = piece.partition("<")
        if not content.strip() or not opened:
            continue
        for value in (*NUMBERS.values(), *TEXTS.values()):
            text = value.replace("&", "&amp;").replace("<", "&lt;")
            changed = [*pieces[:number], f"{text}<{rest}", *pieces[number + 1 :]]
            yield ">".join(changed).encode("utf-8", "surrogateescape")


def csv_documents(good: str) -> Iterator[bytes]:
    """The CSV text `good` damaged; in other encodings; with hostile texts and numbers in its cells."""
    yield from _damaged(good.encode())
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp037", "shift_jis"):
        yield good.encode(encoding)
    yield good.replace(",", ";").encode()
    yield good.replace(",", "\t").encode()
    yield good.replace("\n", "\r").encode()
    yield good.encode() + b'"' + b"x" * 200_000
    yield good.encode() + b"," * 100_000
    lines = good.splitlines()
    for row in range(len(lines)):
        for column in range(len(lines[0].split(","))):
            for value in (*NUMBERS.values(), *PATHS.values()):
                cells = [line.split(",") for line in lines]
                cells[row][column] = '"' + value.replace('"', '""') + '"'
                yield "\n".join(map(",".join, cells)).encode("utf-8", "surrogateescape")


def files(folder: Path, suffix: str) -> dict[str, Path]:
    """Things below `folder` (made if absent) called as files with `suffix`, by what they are. Some have no end."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {kind: folder / f"{kind.replace(' ', '-')}{suffix}" for kind in _MADE}
    for kind, path in made.items():
        _MADE[kind](path)
    return made | {"absent": folder / f"absent{suffix}"}


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * 2**40 if os.statvfs(path.parent).f_bsize >= 4096 else 2**40)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


_MADE = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(4000)),
    "zeros": lambda path: path.write_bytes(bytes(4000)),
    "text": lambda path: path.write_text("no such thing\n" * 9),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "endless device": lambda path: path.symlink_to("/dev/urandom"),
    "sparse": _sparse,
    "unreadable": _unreadable,
}


def _damaged(whole: bytes) -> Iterator[bytes]:
    """As a whole: cut, doubled, with bytes changed."""
    generator = random.Random(0)
    yield from (b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", whole[:-1], whole + whole, bytes(1000))
    yield whole.decode("utf-8", "replace").encode("utf-16")
    for _ in range(20):
        changed = bytearray(whole)
        place = generator.randrange(max(len(changed), 1))
        match generator.randrange(3):
            case 0:
                changed[place : place + 1] = bytes([generator.randrange(256)])
            case 1:
                del changed[place:]
            case _:
                changed[place:place] = changed[place : place + 50]
        yield bytes(changed)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of keys and numbers that lead to each value inside `value`."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in children:
        yield (*at, key)
        yield from _places(inside, (*at, key))


def _with(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    _parent(changed, place)[place[-1]] = new
    return changed


def _without(value: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(value)
    del _parent(changed, place)[place[-1]]
    return changed


def _parent(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        value = value[key]
    return value
