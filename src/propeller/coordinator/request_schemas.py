"""What the API's description says of bodies that are read as a whole, with errors of their own, instead of by FastAPI."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

_DEFINITIONS = "#/$defs/"


@cache
def request_body(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The ``openapi_extra`` of a route whose JSON body is one of these."""
    schemas = [_without_references(kind.model_json_schema()) for kind in kinds]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _without_references(schema: dict[str, Any]) -> Any:
    """A schema with its definitions in their places: references would be looked for in the whole description's."""
    definitions = schema.pop("$defs", {})

    def put(part: Any) -> Any:
        if isinstance(part, list):
            return [put(one) for one in part]
        if not isinstance(part, Mapping):
            return part
        rest = {name: put(one) for name, one in part.items() if name != "$ref"}
        reference = part.get("$ref")
        if reference is None:
            return rest
        return {**put(definitions[reference.removeprefix(_DEFINITIONS)]), **rest}

    return put(schema)
