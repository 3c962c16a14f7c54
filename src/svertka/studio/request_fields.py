"""Fields of requests to the studio: forms as browsers send them, checked by a model, and limits on their size."""

from typing import TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from svertka.escaping import to_printable
from svertka.serving.http_error import HTTPError
from svertka.text_width import shorten

MAX_FORM_BYTES = 8 << 20  # paths of about 100,000 selected images
FORM_TYPE = "application/x-www-form-urlencoded"


class Fields(BaseModel):
    """Fields of a form; a field that is not declared is an error."""

    model_config = ConfigDict(extra="forbid")


AnyFields = TypeVar("AnyFields", bound=Fields)


async def read_form(request: Request, model: type[AnyFields]) -> AnyFields:
    """Return the form in the body of `request` as `model`; fields declared as lists may be given several times.

    Raises:
        HTTPError: 400, a field is wrong; 413, the form is too large; 415, it is not a form.
    """
    kind = request.headers.get("content-type", FORM_TYPE).partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise HTTPError(415, f"send a form of type {FORM_TYPE}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPError(413, f"a form may have at most {MAX_FORM_BYTES >> 20} MiB")
    return parse_fields(bytes(body), model)


def read_query(request: Request, model: type[AnyFields]) -> AnyFields:
    """Return the query of `request` as `model`.

    Raises:
        HTTPError: 400, a field is wrong.
    """
    return parse_fields(request.scope["query_string"], model)


def parse_fields(text: bytes, model: type[AnyFields]) -> AnyFields:
    """Return URL-encoded fields as `model`.

    Raises:
        HTTPError: 400, a field is wrong.
    """
    try:
        given = parse_qs(text.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise HTTPError(400, "the fields of the request cannot be read") from error
    lists = {name for name, field in model.model_fields.items() if "tuple" in str(field.annotation)}
    values: dict[str, object] = {}
    for name, found in given.items():
        if name not in lists and len(found) != 1:
            raise HTTPError(400, f"the request has {shorten(to_printable(name), 80)} {len(found)} times; give it once")
        values[name] = tuple(found) if name in lists else found[0]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = shorten(to_printable(str(fault["loc"][0])), 80)
        raise HTTPError(400, f"the field {name} is wrong: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from error
