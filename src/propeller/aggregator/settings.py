"""The aggregator's settings, from the environment."""

from pydantic import Field

from propeller.process.settings import HttpSettings
from propeller.web.app import MAX_BODY


class AggregatorSettings(HttpSettings):
    """Each field is one environment variable."""

    host: str = Field("127.0.0.1", alias="AGGREGATOR_HOST")
    port: int = Field(8082, alias="AGGREGATOR_PORT")
    max_json_bytes: int = Field(MAX_BODY, alias="AGGREGATOR_MAX_JSON_BYTES", gt=0)
    """The largest JSON body: it is in memory as a whole."""
    max_bytes: int = Field(64 * 1024**3, alias="AGGREGATOR_MAX_BYTES", gt=0)
    """The largest stream of safetensors documents: one of them is in memory at a time."""
    max_update_bytes: int = Field(2 * 1024**3, alias="AGGREGATOR_MAX_UPDATE_BYTES", gt=0)
    """The largest of those documents."""
