"""Keys of clients that admins may read again, where a setting asks for it: encrypted in the database, and forgotten when it is off.

Only keys that an admin makes are kept. Those of devices that joined by a token are not: nobody but the device has seen them.
"""

import base64
import os
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Row, delete, func, select

from propeller.errors import StartError
from propeller.identity.credentials import key_matches
from propeller.identity.tables import kept_keys
from propeller.mqtt.broker_keys import derive
from propeller.process.logs import get_logger
from propeller.store.database import Database, DatabaseConnection

log = get_logger("identity")

_NONCE_BYTES = 12


class KeptKeys:
    """What is kept of clients' keys beside their hashes: nothing without a secret, else each encrypted (AES-256-GCM) by it."""

    def __init__(self, secret: str | None) -> None:
        """``secret`` of any length; ``None`` to keep nothing."""
        self._cipher = None if secret is None else AESGCM(derive(secret, "client keys"))

    @property
    def are_readable(self) -> bool:
        """Whether keys are kept."""
        return self._cipher is not None

    async def open(self, database: Database) -> None:
        """See that the keys of earlier can be read; forget them if none are to be kept any more.

        Raises:
            StartError: there are some, and the secret is that of none of them.
        """
        async with database.transaction() as connection:
            if self._cipher is None:
                count = (await connection.execute(select(func.count()).select_from(kept_keys))).scalar_one()
                if count:
                    await connection.execute(delete(kept_keys))
                    log.warning(
                        "the kept keys of clients are forgotten, as IDENTITY_KEYS_READABLE is off", keys=count
                    )
                return
            rows = list(await connection.execute(select(kept_keys)))
        damaged = [row.client_id for row in rows if self._decrypt(row.client_id, row.sealed) is None]
        if damaged and len(damaged) == len(rows):
            raise StartError(
                "IDENTITY_KEYS_SECRET is not the one by which keys of clients were kept: set that one again; if it is lost, "
                "start once with IDENTITY_KEYS_READABLE=false, which forgets them (clients go on with their keys)"
            )
        if damaged:
            log.warning("kept keys of clients are damaged, and cannot be read", clients=damaged)

    async def keep(self, connection: DatabaseConnection, client_id: str, key: str) -> None:
        """Keep a client's key in place of an earlier one, if keys are kept."""
        await self.forget(connection, client_id)
        if self._cipher is not None:
            nonce = os.urandom(_NONCE_BYTES)
            sealed = nonce + self._cipher.encrypt(nonce, key.encode(), client_id.encode())
            row = {"client_id": client_id, "sealed": base64.b64encode(sealed).decode()}
            await connection.execute(kept_keys.insert().values(row))

    async def forget(self, connection: DatabaseConnection, client_id: str) -> None:
        """Forget a client's key."""
        await connection.execute(delete(kept_keys).where(kept_keys.c.client_id == client_id))

    async def read(self, connection: DatabaseConnection, rows: Iterable[Row[Any]]) -> dict[str, str]:
        """The kept keys of some clients by their ids; ``rows`` are those of ``clients``."""
        if self._cipher is None:
            return {}
        hashes = {row.id: row.key_hash for row in rows}
        kept = await connection.execute(select(kept_keys).where(kept_keys.c.client_id.in_(hashes)))
        found = {row.client_id: self._decrypt(row.client_id, row.sealed) for row in kept}
        return {one: key for one, key in found.items() if key is not None and key_matches(key, hashes[one])}

    def _decrypt(self, client_id: str, sealed: str) -> str | None:
        """A key; ``None`` if it was encrypted by another secret or for another client, or is damaged."""
        try:
            content = base64.b64decode(sealed, validate=True)
            nonce, text = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
            return (
                None
                if self._cipher is None
                else self._cipher.decrypt(nonce, text, client_id.encode()).decode()
            )
        except (ValueError, InvalidTag):
            return None
