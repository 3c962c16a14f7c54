"""What the HTTP interface promises, as OpenAPI 3.1 says it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from svertka.serving.request_limits import MAX_BODY_BYTES
from svertka.serving.served_model import MAX_PIXELS, ServedModel
from svertka.serving.uploads import MAX_IMAGES

MAX_TOP = 1000  # names for each
# What is told; what is sent is known by its content, so that any image/… is taken.
IMAGE_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "image/gif"),
    *("image/avif", "image/heic", "image/jp2", "application/octet-stream"),
)

ERROR_STATUSES = {
    "400": "the request, or the picture in it, is damaged",
    "401": "the token is missing or wrong",
    "403": "a page of another site asked",
    "404": "there is no such run or class",
    "408": "the picture arrived too slowly",
    "413": f"more than {MAX_BODY_BYTES >> 20} MiB, {MAX_PIXELS / 1e6:.0f} megapixels or {MAX_IMAGES} pictures",
    "414": "the address is too long",
    "415": "not a picture in one of the formats, or a list of such",
    "417": "something else than 100-continue is expected",
    "421": "the server is not called so",
    "422": "the network gives no number for the picture",
    "431": "the headers are too long",
    "503": "too many wait already; come again after Retry-After seconds",
}


def openapi(runs: Sequence[ServedModel], root: str) -> dict[str, Any]:
    """The document for these runs; `root`: the path under which a proxy shows the server, or ""."""
    run = _parameter("run", {"type": "string", "enum": [one.key for one in runs], "default": runs[0].key}, "which run")
    top = _parameter("top", {"type": "integer", "minimum": 1, "maximum": MAX_TOP, "default": 5}, "names a picture")
    label = _parameter("label", {"type": "string"}, "the class that is explained; left out: the most probable")
    picture = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES}
    # data: addresses are taken, too.
    encoded = {"type": "array", "maxItems": MAX_IMAGES, "items": {"type": "string", "contentEncoding": "base64"}}
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "maxItems": MAX_IMAGES, "items": file}
    refused = {
        status: {
            "description": why,
            "content": {
                "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
            },
        }
        for status, why in ERROR_STATUSES.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "svertka", "version": version("svertka")},
        "servers": [{"url": root or "/"}],
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Name what is in a picture, or in each of a list; the keys are those of predict --json",
                    "parameters": [run, top],
                    "requestBody": _body(picture | {"application/json": {"schema": encoded}} | _form(files)),
                    "responses": {"200": _answer("one entry a picture, in order", _PREDICTIONS)} | refused,
                }
            },
            "/explain": {
                "post": {
                    "summary": "What the network sees of a picture, where it looked, and which units fired",
                    "parameters": [run, label],
                    "requestBody": _body(picture | _form(file)),
                    "responses": {"200": _answer("pictures as data: addresses", {"type": "object"})} | refused,
                }
            },
            "/health": {
                "get": {
                    "summary": "Whether it answers, which runs it serves, and how many pictures wait",
                    "responses": {"200": _answer("it does", {"type": "object"})},
                }
            },
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _parameter(name: str, schema: dict[str, Any], said: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": said}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def _form(file: dict[str, Any]) -> dict[str, Any]:
    return {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": file}}}}


def _answer(said: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": said, "content": {"application/json": {"schema": schema}}}


_PREDICTIONS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["path", "labels"],
        "properties": {
            "path": {"type": "string", "description": "#0, #1, …: the picture's place in the list"},
            "labels": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "probability"],
                    "properties": {"name": {"type": "string"}, "probability": {"type": "number"}},
                },
            },
            "name": {"type": "string", "description": "the file's name, where it came in a form"},
            "error": {"type": "string", "description": "why this picture has no labels"},
        },
    },
}
