"""The broker's question (NATS auth callout): may this client connect, and what may it publish and subscribe to?

nats-server publishes a token with what the client sent, and expects a token as answer: JSON web tokens that are signed with an nkey
(Ed25519). Passwords never appear in a log or in a reason.
"""

import base64
import json
import secrets
import time
from typing import Any

import nkeys

from propeller.errors import InvalidError, RefusedError
from propeller.identity.access import AccessDirectory, ClientAccess
from propeller.identity.client_watch import ClientWatch
from propeller.identity.roles import NOTHING
from propeller.identity.sessions import MqttIdRefusedError, MqttIds, SessionExpiry
from propeller.mqtt.address import Credentials
from propeller.mqtt.broker_config import DEVICES
from propeller.mqtt.broker_keys import BrokerKeys
from propeller.process.logs import get_logger
from propeller.protocol.roles import Role

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class MalformedClaimsError(InvalidError):
    """A token that cannot be read."""


def encode_token(signer: nkeys.KeyPair, claims: dict[str, Any]) -> str:
    """A signed token with these claims, its issuer, time and a random id."""
    body = {"jti": secrets.token_hex(8), "iat": int(time.time()), "iss": signer.public_key.decode(), **claims}
    signed = f"{_json_base64(_HEADER)}.{_json_base64(body)}"
    return f"{signed}.{_base64(signer.sign(signed.encode()))}"


def decode_token(token: bytes) -> dict[str, Any]:
    """The claims of a token. The signature is not checked: it came over a connection that only the broker writes to.

    Raises:
        MalformedClaimsError: it is not a token.
    """
    try:
        _header, body, _signature = token.split(b".")
        claims = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except ValueError as error:
        raise MalformedClaimsError(str(error)) from None
    if not isinstance(claims, dict):
        raise MalformedClaimsError("the claims are not an object")
    return claims


def _json_base64(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


log = get_logger("callout")


class ConnectRefusedError(RefusedError):
    """The client may not connect; the text is for the log."""


class MutedError(ConnectRefusedError):
    """The client did too much, and may connect later."""


class Callout:
    """Answers from memory; only that an MQTT client id is new, or back after an absence, is written down first."""

    def __init__(
        self,
        directory: AccessDirectory,
        mqtt_ids: MqttIds,
        keys: BrokerKeys,
        sessions: SessionExpiry,
        watch: ClientWatch,
    ) -> None:
        self._directory, self._mqtt_ids, self._keys, self._sessions = directory, mqtt_ids, keys, sessions
        self._watch = watch

    async def answer(self, request: bytes) -> bytes | None:
        """The token to answer with; ``None`` if the request cannot be read (the broker refuses after its time limit)."""
        try:
            asked = decode_token(request)["nats"]
            user, server = str(asked["user_nkey"]), str(asked["server_id"]["id"])
            client, sent = dict(asked["client_info"]), dict(asked["connect_opts"])
        except (KeyError, TypeError, ValueError) as error:
            log.warning("unreadable question from the broker", reason=repr(error))
            return None
        verdict: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            access = await self._decide(client, sent)
            verdict["jwt"] = self._allowed(user, access)
        except MutedError as refusal:  # that it is muted was logged once
            verdict["error"] = str(refusal)
        except ConnectRefusedError as refusal:
            log.warning(
                "MQTT connection refused",
                client_id=str(sent.get("user", ""))[:128],
                mqtt_id=str(client.get("mqtt_id", ""))[:128],
                host=client.get("host"),
                reason=str(refusal),
            )
            verdict["error"] = str(refusal)
        return encode_token(self._keys.issuer, {"sub": user, "aud": server, "nats": verdict}).encode()

    async def _decide(self, client: dict[str, Any], sent: dict[str, Any]) -> ClientAccess:
        if client.get("type") != "mqtt":
            raise ConnectRefusedError("clients connect over MQTT only")
        client_id, key, mqtt_id = (
            str(source.get(name) or "")
            for source, name in ((sent, "user"), (sent, "pass"), (client, "mqtt_id"))
        )
        if not client_id or not key:
            raise ConnectRefusedError("anonymous: a client id and key are required as user name and password")
        if self._sessions.is_own_login(Credentials(mqtt_id, client_id, key)):
            return ClientAccess(client_id, "", Role.DEVICE, "", True, NOTHING, NOTHING, time.time())
        access = self._directory.authenticate(client_id, key)
        if access is None:
            raise ConnectRefusedError("the client is unknown or disabled, or the key is wrong")
        if (muted := self._watch.refusal(client_id)) is not None:
            raise MutedError(muted)
        try:
            await self._mqtt_ids.claim(mqtt_id, client_id)
        except MqttIdRefusedError as error:
            raise ConnectRefusedError(str(error)) from None
        except Exception:
            log.exception("MQTT client id could not be recorded", client_id=client_id)
            raise ConnectRefusedError("identity cannot write its database") from None
        await self._sessions.note_connect(mqtt_id)
        # It may have been revoked while its MQTT client id was written.
        current = self._directory.authenticate(client_id, key)
        if current is None:
            raise ConnectRefusedError("the client was disabled")
        return current

    def _allowed(self, user: str, access: ClientAccess) -> str:
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
        return encode_token(
            self._keys.issuer, {"sub": user, "aud": DEVICES, "name": access.client_id, "nats": rights}
        )
