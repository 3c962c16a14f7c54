"""The page /docs: the OpenAPI document as tables, without scripts from elsewhere."""

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from svertka.pages.html_page import content_security_policy, render_page
from svertka.pages.templates import render_template

POLICY = content_security_policy("docs") + "; frame-ancestors 'none'"
Row = tuple[str, Markup, str]  # name, type, description


def render_docs_page(document: Mapping[str, Any]) -> str:
    """Return the page as HTML for an OpenAPI `document` whose only references are to its schemas."""
    operations = [
        {
            "name": f"{method.upper()} {path}",
            "summary": operation["summary"],
            "tables": {title: list(rows) for title, rows in _tables(operation).items() if rows},
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = {
        name: {
            "description": schema.get("description", ""),
            "rows": [_row(field, details) for field, details in schema["properties"].items()],
        }
        for name, schema in document["components"]["schemas"].items()
        if not name.endswith("ValidationError")  # FastAPI's own errors, which are never sent
    }
    body = render_template("docs_page.html", operations=operations, schemas=schemas)
    return render_page("HTTP interface – svertka", body, kind="docs")


def _tables(operation: Mapping[str, Any]) -> dict[str, Iterable[Row]]:
    body = operation.get("requestBody", {"content": {}})["content"]
    return {
        "Options, in the query or as fields of a form": [
            _row(one["name"], one["schema"] | {"description": one["description"]})
            for one in operation.get("parameters", ())
        ],
        "Body": _body_rows(body),
        "Responses": [
            _row(status, answer["content"]["application/json"]["schema"] | {"description": answer["description"]})
            for status, answer in operation["responses"].items()
        ],
    }


def _body_rows(content: Mapping[str, Any]) -> list[Row]:
    """Return a row for each type of body; content types of one type share it."""
    kinds: dict[Markup, list[str]] = {}
    for kind, media in content.items():
        kinds.setdefault(_type(media["schema"]), []).append(kind)
    return [(", ".join(names), shown, "") for shown, names in kinds.items()]


def _row(name: str, schema: Mapping[str, Any]) -> Row:
    return name, _type(schema), schema.get("description", "")


def _type(schema: Mapping[str, Any]) -> Markup:
    """Return the type of a value as HTML: "integer, 1 to 1000", "list of Label"."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(map(_type, schema["anyOf"]))
    if schema["type"] == "array":
        limit = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return Markup("list of {}{}").format(_type(schema["items"]), limit)
    if schema["type"] == "object":
        fields = [Markup("{}: {}").format(name, _type(one)) for name, one in schema.get("properties", {}).items()]
        return Markup(", ").join(fields) or Markup("object")
    return Markup("{}").format(_plain_type(schema))


def _plain_type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if schema.get("format") == "binary":
        return "bytes"
    if "contentEncoding" in schema:
        return str(schema["contentEncoding"])
    bounds = f", {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else ""
    default = f", default {schema['default']}" if schema.get("default") is not None else ""
    return f"{schema['type']}{bounds}{default}"
