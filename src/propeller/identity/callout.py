"""The broker's question (NATS auth callout): may this one connect, and what may it say and hear?

nats-server publishes a token with what the client sent, and takes a token back. Passwords never appear in a log or in a
reason.
"""

import time
from typing import Any

from propeller.identity import claims
from propeller.identity.directory import Access, Directory
from propeller.identity.mqtt_ids import MqttIdRefusedError, MqttIds
from propeller.identity.roles import NOTHING, Role
from propeller.identity.sessions import SessionExpiry
from propeller.mqtt.address import Credentials
from propeller.mqtt.broker_config import DEVICES
from propeller.mqtt.broker_keys import BrokerKeys
from propeller.process.logs import get_logger

log = get_logger("callout")


class RefusedError(Exception):
    """The client may not connect; the text is for the log."""


class Callout:
    """Answers from memory; only an MQTT client id that is new is written down first."""

    def __init__(
        self, directory: Directory, mqtt_ids: MqttIds, keys: BrokerKeys, sessions: SessionExpiry
    ) -> None:
        self._directory, self._mqtt_ids, self._keys, self._sessions = directory, mqtt_ids, keys, sessions

    async def answer(self, request: bytes) -> bytes | None:
        """The token to answer with; ``None`` if the request cannot be read (the broker refuses after its time limit)."""
        try:
            asked = claims.decode(request)["nats"]
            user, server = str(asked["user_nkey"]), str(asked["server_id"]["id"])
            client, sent = dict(asked["client_info"]), dict(asked["connect_opts"])
        except (claims.MalformedClaimsError, KeyError, TypeError, ValueError) as error:
            log.warning("unreadable question from the broker", reason=repr(error))
            return None
        verdict: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            access = await self._decide(client, sent)
            verdict["jwt"] = self._allowed(user, access)
        except RefusedError as refusal:
            log.warning(
                "MQTT connection refused",
                client_id=str(sent.get("user", ""))[:128],
                mqtt_id=str(client.get("mqtt_id", ""))[:128],
                host=client.get("host"),
                reason=str(refusal),
            )
            verdict["error"] = str(refusal)
        return claims.encode(self._keys.issuer, {"sub": user, "aud": server, "nats": verdict}).encode()

    async def _decide(self, client: dict[str, Any], sent: dict[str, Any]) -> Access:
        if client.get("type") != "mqtt":
            raise RefusedError("clients connect over MQTT only")
        client_id, key, mqtt_id = (
            str(source.get(name) or "")
            for source, name in ((sent, "user"), (sent, "pass"), (client, "mqtt_id"))
        )
        if not client_id or not key:
            raise RefusedError("anonymous: a client id and key are required as user name and password")
        if self._sessions.is_own_login(Credentials(mqtt_id, client_id, key)):
            return Access(client_id, Role.DEVICE, "", True, NOTHING, NOTHING, time.time())
        access = self._directory.authenticate(client_id, key)
        if access is None:
            raise RefusedError("the client is unknown or disabled, or the key is wrong")
        try:
            await self._mqtt_ids.claim(mqtt_id, client_id)
        except MqttIdRefusedError as error:
            raise RefusedError(str(error)) from None
        except Exception:
            log.exception("MQTT client id could not be recorded", client_id=client_id)
            raise RefusedError("identity cannot write its database") from None
        self._sessions.note_connect(mqtt_id)
        # It may have been revoked while its MQTT client id was written.
        current = self._directory.authenticate(client_id, key)
        if current is None:
            raise RefusedError("the client was disabled")
        return current

    def _allowed(self, user: str, access: Access) -> str:
        rights = {
            "type": "user",
            "version": 2,
            "allowed_connection_types": ["MQTT"],
            "pub": access.publish,
            "sub": access.subscribe,
            "subs": -1,
            "data": -1,
            "payload": -1,
        }
        return claims.encode(
            self._keys.issuer, {"sub": user, "aud": DEVICES, "name": access.client_id, "nats": rights}
        )
