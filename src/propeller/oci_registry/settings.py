"""OciRegistrySettings of the embedded registry."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from propeller.oci.credentials import Login
from propeller.process.settings import HttpSettings

MAX_BLOB_BYTES = 1024 * 1024 * 1024
"""The default limit on a blob."""


class OciRegistrySettings(HttpSettings):
    """Where it listens, where it keeps artifacts, and a login of its own beside those that identity knows."""

    host: str = Field("127.0.0.1", alias="OCI_REGISTRY_HOST")
    port: int = Field(5000, alias="OCI_REGISTRY_PORT", ge=0, le=65535)
    folder: Path = Field(Path(".propeller/oci"), alias="OCI_REGISTRY_FOLDER")
    username: str | None = Field(None, alias="OCI_REGISTRY_USERNAME")
    password: SecretStr | None = Field(None, alias="OCI_REGISTRY_PASSWORD")
    max_blob: int = Field(MAX_BLOB_BYTES, alias="OCI_REGISTRY_MAX_BLOB", gt=0)

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("OCI_REGISTRY_USERNAME and OCI_REGISTRY_PASSWORD are set together or not at all")
        return self

    @property
    def login(self) -> Login | None:
        """The registry's own login, if it has one."""
        if self.username is None or self.password is None:
            return None
        return Login(self.username, self.password.get_secret_value())
