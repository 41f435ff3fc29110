"""The model registry's settings, from the environment."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from propeller.errors import StartError
from propeller.model_registry.encodings import MAX_DECODED
from propeller.process.settings import HttpSettings

MAX_BYTES = 4 * 1024 * 1024 * 1024
"""The default of the largest model: it goes to the disk as it comes, and does not take that much memory."""

INITIAL_MODEL = '{"w":[0,0,0],"b":0}'


class ModelRegistrySettings(HttpSettings):
    """Each field is one environment variable."""

    host: str = Field("127.0.0.1", alias="REGISTRY_HOST")
    port: int = Field(8081, alias="REGISTRY_PORT")
    folder: Path = Field(Path("/tmp/fl-models"), alias="MODELS_DIR")  # noqa: S108 - absmach/propeller's default
    initial_model: str = Field(INITIAL_MODEL, alias="REGISTRY_INITIAL_MODEL")
    """Version 0 of a registry that has none: JSON, or the path of a JSON file."""
    max_bytes: int = Field(MAX_BYTES, alias="REGISTRY_MAX_BYTES", gt=0)
    max_decoded_bytes: int = Field(MAX_DECODED, alias="REGISTRY_MAX_DECODED_BYTES", gt=0)
    cache_bytes: int = Field(64 * 1024 * 1024, alias="REGISTRY_CACHE_BYTES", ge=0)

    device_models: Literal["named", "any"] = Field("named", alias="REGISTRY_DEVICE_MODELS")
    """What a device may read: the version that its task names by its digest, or any, for managers that name none, as absmach/propeller's."""

    def read_initial_model(self) -> dict[str, Any]:
        """The initial model, decoded.

        Raises:
            StartError: it is not a JSON object, or its file cannot be read.
        """
        text = self.initial_model.strip()
        try:
            if not text.startswith("{"):
                text = Path(text).read_text(encoding="utf-8")
            model = json.loads(text)
        except (OSError, ValueError) as error:
            raise StartError(
                f"REGISTRY_INITIAL_MODEL cannot be read: {error}; give JSON or the path of a JSON file"
            ) from None
        if not isinstance(model, dict):
            raise StartError("REGISTRY_INITIAL_MODEL must be a JSON object of tensors, as " + INITIAL_MODEL)
        return model
