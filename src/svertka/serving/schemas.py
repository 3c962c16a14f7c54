"""Schemas of the HTTP interface: options and answers as pydantic models, and what OpenAPI says of bodies and errors."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from svertka.serving.request_body_limits import MAX_BODY_BYTES
from svertka.serving.served_model import MAX_PIXELS
from svertka.serving.uploads import MAX_IMAGES

MAX_TOP = 1000  # labels of an image
# Those that the document names. Other image/… types are accepted, too: the content says which format it is.
IMAGE_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "image/gif"),
    *("image/avif", "image/heic", "image/jp2", "application/octet-stream"),
)
ERROR_STATUSES = {
    400: "the request or its image is damaged",
    401: "the token is missing or wrong",
    403: "the request comes from a page of another site",
    404: "no such run or class",
    408: "the image arrived too slowly",
    413: f"more than {MAX_BODY_BYTES >> 20} MiB, {MAX_PIXELS / 1e6:.0f} megapixels or {MAX_IMAGES} images",
    414: "the URL is too long",
    415: "not an image in a supported format, nor a list of such images",
    417: "Expect holds something other than 100-continue",
    421: "the server does not answer to this Host; see --allow-host",
    422: "the network computes NaN for this image",
    431: "the headers are too long",
    503: "too many requests; try again after Retry-After seconds",
}


class _Options(BaseModel):
    """Options of a request, from the query or from the fields of a form."""

    model_config = ConfigDict(extra="forbid")


class PredictOptions(_Options):
    """Options of /predict."""

    run: Annotated[str | None, Field(description="Key of the run; default: the first.")] = None
    top: Annotated[int, Field(ge=1, le=MAX_TOP, description="Labels per image.")] = 5


class ExplainOptions(_Options):
    """Options of /explain."""

    run: Annotated[str | None, Field(description="Key of the run; default: the first.")] = None
    label: Annotated[str | None, Field(description="Class to explain; default: the most probable.")] = None


class Label(BaseModel):
    """A class and its probability."""

    name: str
    probability: float
    predicted: Annotated[
        bool | None, Field(description="If images have several labels: whether it reaches the threshold of the label.")
    ] = None


class Number(BaseModel):
    """A predicted number."""

    name: Annotated[str, Field(description="Column of the table that the run was trained on.")]
    value: float


class ImageLabels(BaseModel):
    """The labels of one image, or the error that left it without labels, with the keys of svertka predict --json."""

    path: Annotated[str, Field(description="#0, #1, …: position in the request.")]
    labels: Annotated[list[Label], Field(description="Most probable first; empty after an error, or for a number.")]
    number: Annotated[Number | None, Field(description="What a run of a number predicts.")] = None
    unknown: Annotated[
        bool | None,
        Field(description="Whether the image is of none of the classes: unknown_score exceeds unknown_threshold."),
    ] = None
    unknown_score: Annotated[
        float | None, Field(description="How unlike the training images it is; absent without a calibration.")
    ] = None
    unknown_threshold: Annotated[float | None, Field(description="That of the run.")] = None
    name: Annotated[str | None, Field(description="File name in the form.")] = None
    error: Annotated[str | None, Field(description="Why the image has no labels.")] = None


class Unit(BaseModel):
    """A unit with a large activation."""

    layer: str
    unit: int
    value: Annotated[float, Field(description="Its activation.")]
    share: Annotated[float | None, Field(description="Of its largest activation in the atlas; null without an atlas.")]
    box: Annotated[list[int], Field(description="Pixels of the input it sees: top, left, bottom, right.")]


class Explanation(BaseModel):
    """The input of the network and the evidence for one class."""

    label: str
    size: Annotated[int, Field(description="Side of the input in pixels.")]
    pixelated: Annotated[bool, Field(description="Whether the input is so small that pixels should show.")]
    image: Annotated[str, Field(description="The input, a data: URL of a WebP.")]
    heatmap: Annotated[str | None, Field(description="Grad-CAM overlay, a data: URL; null without feature maps.")]
    units: Annotated[list[Unit], Field(description="Most active units by layer.")]


class Health(BaseModel):
    """The state of the server."""

    status: str
    runs: list[str]
    waiting: Annotated[int, Field(description="Images in progress.")]
    answered: Annotated[int, Field(description="Images answered since the start.")]


class ErrorMessage(BaseModel):
    """Why a request failed, in one sentence."""

    error: str


def error_responses() -> dict[int | str, dict[str, Any]]:
    """Return the error statuses in the form of FastAPI's `responses`."""
    return {status: {"model": ErrorMessage, "description": why} for status, why in ERROR_STATUSES.items()}


def describe_image_body(*, several: bool) -> dict[str, Any]:
    """Return an image body as an OpenAPI operation describes it; `several`: lists of images are accepted, too."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "array", "maxItems": MAX_IMAGES, "items": file} if several else file
    content: dict[str, Any] = {kind: {"schema": file} for kind in IMAGE_TYPES}
    content["multipart/form-data"] = {"schema": {"type": "object", "properties": {"file": files}}}
    if several:  # data: URLs are accepted, too
        encoded = {"type": "string", "contentEncoding": "base64"}
        content["application/json"] = {"schema": {"type": "array", "maxItems": MAX_IMAGES, "items": encoded}}
    return {"requestBody": {"required": True, "content": content}}


def add_run_enum(document: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return `document` with the keys of the served runs as the values of each parameter `run`."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "run":
                    parameter["schema"] = {"type": "string", "enum": list(keys), "default": keys[0]}
    return document
