"""The aggregator's settings, from the environment."""

from pathlib import Path

from pydantic import Field, SecretStr

from propeller.process.settings import HttpSettings, Seconds
from propeller.program_host.settings import Registries, RegistryUrl
from propeller.web.limits import MAX_BODY

MIB, GIB = 1024**2, 1024**3


class AggregatorSettings(HttpSettings):
    """Each field is one environment variable."""

    host: str = Field("127.0.0.1", alias="AGGREGATOR_HOST")
    port: int = Field(8082, alias="AGGREGATOR_PORT")
    max_json_bytes: int = Field(MAX_BODY, alias="AGGREGATOR_MAX_JSON_BYTES", gt=0)
    """The largest JSON body: it is in memory as a whole."""
    max_bytes: int = Field(64 * GIB, alias="AGGREGATOR_MAX_BYTES", gt=0)
    """The largest sequence of safetensors documents: a few of them are in memory at a time."""
    max_update_bytes: int = Field(2 * GIB, alias="AGGREGATOR_MAX_UPDATE_BYTES", gt=0)
    """The largest of those documents."""
    spill: Path | None = Field(None, alias="AGGREGATOR_SPILL")
    """Where updates wait that a strategy needs all at once; unset: the system's temporary folder."""
    spill_bytes: int = Field(64 * GIB, alias="AGGREGATOR_SPILL_BYTES", gt=0)
    """How much of them may wait at a time, of all rounds."""

    cache: Path = Field(Path(".propeller/aggregator"), alias="AGGREGATOR_CACHE")
    """Programs that aggregate, and what they work on."""
    cache_bytes: int = Field(GIB, alias="AGGREGATOR_CACHE_BYTES", ge=MIB)
    program_cache: Path | None = Field(None, alias="AGGREGATOR_PROGRAM_CACHE")
    runtimes: Path | None = Field(None, alias="PROPELLER_RUNTIMES")
    registry_url: RegistryUrl = Field("docker.io", alias="AGGREGATOR_REGISTRY_URL")
    """Where programs are whose reference names no registry, and what the login is for."""
    allowed_registries: Registries = Field("", alias="AGGREGATOR_ALLOWED_REGISTRIES")
    signers: str = Field("", alias="AGGREGATOR_SIGNERS")
    """Files with public keys, separated by commas, one of which must have signed a program."""
    registry_username: str | None = Field(None, alias="AGGREGATOR_REGISTRY_USERNAME")
    registry_password: SecretStr | None = Field(None, alias="AGGREGATOR_REGISTRY_PASSWORD")
    registry_token: SecretStr | None = Field(None, alias="AGGREGATOR_REGISTRY_TOKEN")
    program_wall_time: Seconds = Field(300.0, alias="AGGREGATOR_PROGRAM_WALL_TIME", gt=0)
    program_memory: int = Field(512 * MIB, alias="AGGREGATOR_PROGRAM_MEMORY", ge=MIB)
    program_tensor_bytes: int = Field(2 * GIB, alias="AGGREGATOR_PROGRAM_TENSOR_BYTES", ge=1024)
    program_out_bytes: int = Field(2 * GIB, alias="AGGREGATOR_PROGRAM_OUT_BYTES", ge=1024)
