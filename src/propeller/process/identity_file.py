"""The identity of a client of the broker: from the environment and, where that leaves it out, from ``config.toml``.

absmach/propeller's provisioning command writes that file: a section for a service, with ``domain_id``, ``channel_id``,
``client_id`` and ``client_key`` (in its later version ``tenant_id``, ``entity_id`` and ``api_key``).
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from propeller.process.settings import PROVISION, SettingsError

T = TypeVar("T")

NAMES = {
    "domain_id": ("domain_id", "tenant_id"),
    "channel_id": ("channel_id",),
    "client_id": ("client_id", "entity_id"),
    "client_key": ("client_key", "api_key"),
}
"""Field → its keys in the file; in upper case, after a service's prefix, its environment variables."""


def missing_identity_variables(
    prefix: str, known: Mapping[str, Any], fields: Iterable[str] = tuple(NAMES)
) -> list[str]:
    """The variables of its identity that a service misses. Only where an identity service is named: else a broker may ask for none.

    Args:
        prefix: of the variables, as ``PROXY``.
        known: fields that are known already.
        fields: those that the service needs.
    """
    if not (known.get("identity_url") or os.environ.get("PROPELLER_IDENTITY_URL")):
        return []
    return [
        f"{prefix}_{field.upper()}" for field in fields if field not in known and not _is_set(prefix, field)
    ]


def _is_set(prefix: str, field: str) -> bool:
    """Whether the environment has a field, by any of its names."""
    return any(os.environ.get(f"{prefix}_{name.upper()}") for name in NAMES[field])


@dataclass(frozen=True)
class IdentityFile:
    """Where a service's identity may be instead of in its environment.

    Attributes:
        prefix: of the variables, as ``PROXY``.
        section: of the file, as ``proxy``.
        path: the file; there may be none.
    """

    prefix: str
    section: str
    path: Path = Path("config.toml")

    def load(self, settings: Callable[..., T], given: Mapping[str, Any]) -> T:
        """Settings with what the environment leaves out filled in.

        Args:
            settings: makes them from fields; raises ``SettingsError``.
            given: fields that are known already.

        Raises:
            SettingsError: naming every variable that is missing or wrong and, if the identity is not complete, what
                the file lacks and how to get it.
        """
        found, problem = self._read([name for name in NAMES if not self._is_known(name, given)])
        known = {**found, **given}
        absent = [f"{self.prefix}_{name.upper()}" for name in NAMES if not self._is_known(name, known)]
        try:
            return settings(missing=missing_identity_variables(self.prefix, known), **known)
        except SettingsError as error:
            # A key that alone is missing is no fault, as a broker may ask for none; beside other faults it is named.
            others = [line for line in error.lines if line.partition(":")[0] not in absent]
            if not absent or len(others) == len(error.lines):
                raise
            lines = [*(f"{variable}: not set" for variable in absent), *others]
            raise SettingsError(lines, remedy=self._remedy(problem)) from None

    def _read(self, absent: list[str]) -> tuple[dict[str, str], str]:
        """What the file has of the absent fields, and what it lacks."""
        if not absent:
            return {}, ""
        if not self.path.exists():
            return {}, "there is no such file"
        try:
            document = tomllib.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            wanted = ", ".join(f"{self.prefix}_{name.upper()}" for name in absent)
            raise SettingsError(
                [f"{self.path} cannot be read: {error}"],
                remedy=f"correct it, or set {wanted} in the environment and remove it",
            ) from None
        table = document.get(self.section)
        if not isinstance(table, dict):
            return {}, "the file has no such section"
        found = {name: next((table[key] for key in NAMES[name] if table.get(key)), None) for name in absent}
        missing = ", ".join(name for name, value in found.items() if value is None)
        return {name: str(value) for name, value in found.items() if value is not None}, f"it lacks {missing}"

    def _remedy(self, problem: str) -> str:
        where = f"section [{self.section}] of {self.path} ({', '.join(NAMES)})"
        return f"{PROVISION}; or write them into {where}: {problem}"

    def _is_known(self, name: str, known: Mapping[str, Any]) -> bool:
        return name in known or _is_set(self.prefix, name)
