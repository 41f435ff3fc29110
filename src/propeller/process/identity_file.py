"""The identity of a client of the broker from ``config.toml``, where the environment leaves it out.

absmach/propeller's provisioning command writes that file: a section for a service, with ``domain_id``, ``channel_id``,
``client_id`` and ``client_key`` (in its later version ``tenant_id``, ``entity_id`` and ``api_key``).
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from propeller.process.settings import SettingsError

NAMES = {
    "domain_id": ("domain_id", "tenant_id"),
    "channel_id": ("channel_id",),
    "client_id": ("client_id", "entity_id"),
    "client_key": ("client_key", "api_key"),
}
"""Field → its keys in the file; in upper case, after a service's prefix, its environment variables."""


def lacking_identity(
    prefix: str, known: Mapping[str, Any], fields: Iterable[str] = tuple(NAMES)
) -> list[str]:
    """The variables of an identity that a service lacks, where an identity service is named: nobody connects to its broker without.

    Args:
        prefix: of the variables, as ``PROXY``.
        known: fields that are known already.
        fields: those that the service cannot do without.
    """
    if not (known.get("identity_url") or os.environ.get("PROPELLER_IDENTITY_URL")):
        return []
    return [
        f"{prefix}_{field.upper()}" for field in fields if field not in known and not _is_set(prefix, field)
    ]


def identity_from_file(prefix: str, section: str, given: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The fields that are neither ``given`` nor in the environment, as far as the file has them.

    Args:
        prefix: of the variables, as ``PROXY``.
        section: of the file, as ``proxy``.
        given: fields that are known already.
        path: the file; if there is none, nothing is found.

    Raises:
        SettingsError: the file cannot be read.
    """
    missing = [field for field in NAMES if field not in given and not _is_set(prefix, field)]
    if not missing or not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    table = document.get(section)
    values = table if isinstance(table, dict) else {}
    found = {field: next((values[key] for key in NAMES[field] if values.get(key)), None) for field in missing}
    return {field: str(value) for field, value in found.items() if value is not None}


def _is_set(prefix: str, field: str) -> bool:
    """Whether the environment has a field, by any of its names."""
    return any(os.environ.get(f"{prefix}_{name.upper()}") for name in NAMES[field])
