"""The data store's settings, from the environment."""

import os
import re
from pathlib import Path

from pydantic import Field

from propeller.errors import StartError
from propeller.process.settings import HttpSettings
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.web.limits import MAX_BODY

_PROPLET_ID = re.compile(r"PROPLET_(?:(\d+)_)?(?:CLIENT|ENTITY)_ID")
"""The variables with the ids of the demo's proplets; later versions of absmach/propeller call clients entities."""


class DataStoreSettings(HttpSettings):
    """Each field is one environment variable."""

    host: str = Field("127.0.0.1", alias="DATA_STORE_HOST")
    port: int = Field(8083, alias="DATA_STORE_PORT")
    folder: Path = Field(Path("/data/datasets"), alias="DATA_DIR")
    participants: str = Field("", alias="FL_DATASET_PARTICIPANTS")
    """Ids to seed, separated by commas; else those of ``PROPLET_CLIENT_ID``, ``PROPLET_2_CLIENT_ID``, … or ``PROPLET_ENTITY_ID``, …"""
    max_bytes: int = Field(MAX_BODY, alias="DATA_STORE_MAX_BYTES", gt=0)

    def ids_to_seed(self) -> list[str]:
        """The ids that must have a dataset.

        Raises:
            StartError: one of them is not an id.
        """
        ids = [part.strip() for part in self.participants.split(",") if part.strip()] or _proplet_ids()
        try:
            return [check_id(proplet_id) for proplet_id in dict.fromkeys(ids)]
        except InvalidIdError as error:
            raise StartError(f"FL_DATASET_PARTICIPANTS, or PROPLET_CLIENT_ID and so on: {error}") from None


def _proplet_ids() -> list[str]:
    found = [
        (int(match[1] or 1), value)
        for name, value in os.environ.items()
        if (match := _PROPLET_ID.fullmatch(name)) and value
    ]
    return [value for _number, value in sorted(found)]
