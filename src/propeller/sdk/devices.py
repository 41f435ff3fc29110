"""The devices of a stack's domain: added with a token to join by, renamed and removed."""

import builtins
from collections.abc import Sequence
from typing import Any

from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError
from propeller.sdk.connection import Connection
from propeller.sdk.domain import DomainRequests
from propeller.sdk.transport import Blocking, blocking


class AsyncDevices:
    """The devices of a stack's domain. An operator of it may change them, and an admin."""

    def __init__(self, connection: Connection) -> None:
        """Use the identity service and the manager of ``connection``."""
        self._requests = DomainRequests(connection)

    def __repr__(self) -> str:
        """Shows where they are known."""
        return f"<{type(self).__name__} of {self._requests.connection.urls['identity']}>"

    async def add(
        self, name: str, *, tags: Sequence[str] = (), lifetime_s: float | None = None
    ) -> dict[str, Any]:
        """A new device, and the token by which it joins (``propeller join TOKEN``).

        Args:
            name: what it is called, in experiments too.
            tags: by which experiments choose it.
            lifetime_s: how long the token is good, in seconds; ``None`` for an hour.

        Returns:
            ``id``, ``name``, ``tags``, ``token``, which is good once and not shown again, and ``expires_at``.

        Raises:
            ConflictError: the name is taken.
            InvalidError: the name, a tag or the time is not one.
        """
        body: dict[str, Any] = {"name": name, "tags": list(tags)}
        if lifetime_s is not None:
            body["lifetime_s"] = lifetime_s
        added: dict[str, Any] = await self._requests.ask("POST", await self._path(), json=body)
        return added

    async def remove(self, device: str) -> None:
        """Take a device's key away, disconnect it, and have the manager forget it; its name may be used again.

        Args:
            device: its name or id.

        Raises:
            NotFoundError: there is none.
        """
        device_id = (await self._find(device))["id"]
        await self._requests.connection.send("DELETE", "identity", f"{await self._path()}/{device_id}")
        try:
            await self._requests.connection.send("DELETE", "manager", f"/proplets/{device_id}")
        except (NotFoundError, ConflictError):
            return  # it never registered; or its last tasks are not over, and its record stays with them

    async def rename(self, device: str, name: str) -> dict[str, Any]:
        """Give a device another name, by which experiments choose it from now on.

        Args:
            device: its name or id.
            name: the new one.

        Raises:
            NotFoundError: there is no such device.
            ConflictError: the name is taken.
            InvalidError: the name is not one, or the device is one of the stack's own.
            PropellerError: it is renamed, and the manager could not be told: it asks identity within some seconds.
        """
        renamed = await self._change(device, {"name": name})
        await self._tell_manager(renamed, f"{device} until it has asked identity again")
        return renamed

    async def tag(self, device: str, tags: Sequence[str]) -> dict[str, Any]:
        """Give a device other tags, by which experiments choose it from now on.

        A tag that some device was given here is nobody's else: what devices say of themselves (``PROPLET_TAGS``) is taken of other tags alone.
        Those of the devices that ``propeller up`` runs itself are given by its ``--tag`` at each of its starts.

        Args:
            device: its name or id.
            tags: all that it has from now on.

        Raises:
            NotFoundError: there is no such device.
            InvalidError: a tag is not one.
            PropellerError: it has them, and the manager could not be told: it asks identity within some seconds.
        """
        tagged = await self._change(device, {"tags": list(tags)})
        await self._tell_manager(tagged, "by its old tags until it has asked identity again")
        return tagged

    async def _change(self, device: str, body: dict[str, Any]) -> dict[str, Any]:
        device_id = (await self._find(device))["id"]
        changed: dict[str, Any] = await self._requests.ask(
            "PATCH", f"{await self._path()}/{device_id}", json=body
        )
        return changed

    async def _tell_manager(self, changed: dict[str, Any], otherwise: str) -> None:
        """Have the manager ask identity about a device now."""
        body = {"name": changed["name"]}
        try:
            await self._requests.connection.ask("PATCH", "manager", f"/proplets/{changed['id']}", json=body)
        except (NotFoundError, InvalidError):
            pass  # it has not registered yet; or the manager asks no identity
        except PropellerError as error:
            raise PropellerError(
                f"{changed['name']} is changed, but the manager calls it {otherwise}: {error}"
            ) from None

    async def duplicates(self) -> builtins.list[str]:
        """The ids of clients, devices among them, as which two processes are connected now: each ends the other's connection.

        Raises:
            PropellerError: the caller may not see it.
        """
        domain = await self.domain_id()
        answer = await self._requests.ask("GET", "/auth/duplicates", params={"domain_id": domain})
        found: list[str] = answer["clients"]
        return found

    async def domain_id(self) -> str:
        """The id of the stack's domain.

        Raises:
            NotFoundError: it is not clear which is meant.
        """
        return str((await self._requests.find())["id"])

    async def _path(self) -> str:
        return f"/{await self.domain_id()}/devices"

    async def _find(self, device: str) -> dict[str, Any]:
        every = await self._known()
        for field in ("id", "name"):
            for one in every:
                if one[field] == device:
                    return one
        names = ", ".join(one["name"] for one in every) or "none"
        raise NotFoundError(f"there is no device {device!r}; there are: {names}")

    async def _known(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._requests.ask("GET", await self._path()))["devices"]
        return found

    async def list(self) -> list[dict[str, Any]]:
        """Every device, the oldest first.

        Returns:
            ``id``, ``name``, ``tags``, ``alive`` (whether the manager hears it), ``joined_at``, and ``state``: ``waiting`` for its
            token to be used, until ``token_expires_at``; ``expired``, if nobody did; ``joined``; or ``disabled``.

        Raises:
            PropellerError: the caller may not see them.
        """
        devices = await self._known()
        fleet = await self._requests.pages("manager", "/proplets", "proplets")
        alive = {one["id"] for one in fleet if one["alive"]}
        return [{**one, "alive": one["id"] in alive} for one in devices]


class Devices(Blocking[AsyncDevices]):
    """The devices of a stack's domain; the methods are described at ``AsyncDevices``."""

    list = blocking(AsyncDevices.list)
    add = blocking(AsyncDevices.add)
    remove = blocking(AsyncDevices.remove)
    rename = blocking(AsyncDevices.rename)
    tag = blocking(AsyncDevices.tag)
    duplicates = blocking(AsyncDevices.duplicates)
    domain_id = blocking(AsyncDevices.domain_id)
