"""Request bodies that hold a spec: JSON or YAML in UTF-8."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from creditgrid.core.spec.text import SpecText
from creditgrid.core.wire import Extension

JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "text/yaml", "application/x-yaml")


def spec_text(body: bytes, content_type: str) -> SpecText:
    """The text of a spec in a request body.

    Raises:
        HTTPException: 415 for a content type that is neither JSON nor YAML.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in JSON_TYPES:
        return SpecText(body)
    if media_type in YAML_TYPES:
        return SpecText(body, yaml=True)
    accepted = ", ".join((*JSON_TYPES, *YAML_TYPES))
    raise HTTPException(415, f"send a spec as one of {accepted}; got {content_type!r:.100}")


async def _body(request: Request) -> bytes:
    return await request.body()


BodyDep = Annotated[bytes, Depends(_body)]


def _openapi_body(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a body that FastAPI does not parse."""
    content = {kind: {"schema": schema} for kind in ("application/json", "application/yaml")}
    return {"requestBody": {"required": True, "description": description, "content": content}}


SPEC_BODY = _openapi_body("A sweep spec, as JSON or YAML in UTF-8.", {"type": "object"})
EXTENSION_BODY = _openapi_body("What to add to a sweep, as JSON or YAML in UTF-8.", Extension.model_json_schema())
