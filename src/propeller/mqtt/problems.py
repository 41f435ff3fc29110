"""Why a session has no connection or lacks a subscription, logged so that its operator knows what to do, and not too often."""

import ssl
import time
from dataclasses import dataclass

import aiomqtt

from propeller.mqtt.address import BrokerAddress, Credentials
from propeller.mqtt.connection import HungUpError
from propeller.process.logs import get_logger

log = get_logger("mqtt")

REPEAT_S = 60.0
"""The same problem is logged again after this long, in seconds."""

SHORT_LIVED_S = 15.0
_SHORT_LIVED_IN_A_ROW = 3
"""So many connections in a row that lasted shorter than that are no accident."""

_CANNOT = "cannot connect to MQTT broker, trying again"
_REFUSED = frozenset({4, 5, 134, 135})
"""CONNACK codes of MQTT 3.1.1 for a login that is not accepted, and what paho makes of them."""


@dataclass(frozen=True)
class SettingNames:
    """What the settings behind a session are called: the operator is told which to correct."""

    client: str = "the client's id and key"
    channel: str = "the domain and the channel"
    tls: str = "MQTT_TLS"
    """What the variables for TLS begin with."""
    refused: str = ""
    """What to do about a client that the broker refuses, where that is not to correct its settings."""

    @classmethod
    def of_service(cls, prefix: str) -> "SettingNames":
        """The names of a service, as ``MANAGER``."""
        return cls(
            f"{prefix}_CLIENT_ID and {prefix}_CLIENT_KEY",
            f"{prefix}_DOMAIN_ID and {prefix}_CHANNEL_ID",
            f"{prefix}_MQTT_TLS",
        )


@dataclass(frozen=True)
class Problem:
    """A reason for having no connection.

    Attributes:
        event: what happened, in few words.
        reason: why.
        remedy: what to do; empty where waiting is all there is to do.
    """

    event: str
    reason: str
    remedy: str = ""


class ProblemLog:
    """Explains and logs the problems of one session."""

    def __init__(self, address: BrokerAddress, credentials: Credentials, names: SettingNames) -> None:
        self._address, self._credentials, self._settings = address, credentials, names
        self.last: Problem | None = None
        """Why there is no connection; ``None`` while there is one, and before the first try."""
        self._logged_at = 0.0
        self._short_lived = 0

    def connected(self) -> None:
        """There is a connection."""
        self.last = None

    def connection_lost(self, error: Exception, lasted_s: float) -> None:
        """A connection that there was is gone; of two clients with one id each ends the other's, again and again."""
        self._short_lived = self._short_lived + 1 if lasted_s < SHORT_LIVED_S else 0
        more = {}
        if self._short_lived >= _SHORT_LIVED_IN_A_ROW:
            who = self._credentials.username or self._credentials.mqtt_id
            more["remedy"] = (
                f"it is lost again and again: another process may be connected as {who}, and each ends the other's connection; stop "
                f"one of them, or give each {self._settings.client} of its own"
            )
        write = log.error if more else log.warning
        write(
            "MQTT connection lost, connecting again",
            broker=str(self._address),
            reason=str(_root(error)),
            **more,
        )

    def connect_failed(self, error: Exception) -> None:
        """A connection could not be made."""
        problem = self._problem(error)
        if problem == self.last and time.monotonic() - self._logged_at < REPEAT_S:
            return
        self.last, self._logged_at = problem, time.monotonic()
        more = {"remedy": problem.remedy} if problem.remedy else {}
        write = log.error if problem.remedy else log.warning
        write(problem.event, broker=str(self._address), reason=problem.reason, **more)

    def subscriptions_refused(self, topics: list[str]) -> None:
        """Subscriptions were refused for lack of a right."""
        self._log_refused(topics, self.refusal_text(topics))

    def limit_reached(self, topics: list[str]) -> None:
        """Subscriptions were refused because there are too many."""
        self._log_refused(topics, self.limit_text(topics))

    def limit_text(self, topics: list[str]) -> str:
        """What it means that a subscription is refused at QoS 1 and granted at QoS 0."""
        return (
            f"the broker lets client {self._credentials.username or '(anonymous)'} subscribe to {', '.join(topics)}, but cannot keep "
            "another QoS 1 subscription: raise BROKER_MAX_SUBSCRIPTIONS there, or shorten BROKER_SESSION_EXPIRY, after "
            "which the sessions of absent clients end; if neither is the cause, the broker's log names it"
        )

    def refusal_text(self, topics: list[str]) -> str:
        """What it means that a subscription is refused at every QoS."""
        return (
            f"the broker refuses {', '.join(topics)} to client {self._credentials.username or '(anonymous)'}: check "
            f"{self._settings.channel}, and that the client is connected to that channel with the role it needs "
            "(identity: /channels/connect)"
        )

    def _log_refused(self, topics: list[str], text: str) -> None:
        log.error("MQTT subscription refused", broker=str(self._address), topics=topics, reason=text)

    def _problem(self, error: Exception) -> Problem:
        root = _root(error)
        code = getattr(error, "rc", None)
        if isinstance(error, aiomqtt.MqttCodeError) and getattr(code, "value", code) in _REFUSED:
            return self._login_refused()
        if isinstance(root, ssl.SSLCertVerificationError):
            return self._not_trusted(root.verify_message)
        if isinstance(root, ssl.SSLError) or (self._address.tls and isinstance(root, ConnectionResetError)):
            remedy = f"see that {self._address} is the broker's port for TLS (usually 8883)"
            return Problem(_CANNOT, f"no TLS with the broker: {root}", remedy)
        if isinstance(error, HungUpError):
            return Problem(_CANNOT, str(error), self._hung_up())
        return Problem(_CANNOT, str(root))

    def _hung_up(self) -> str:
        if not self._address.tls:
            return f"if this port is for TLS, write mqtts://{self._address.host}:{self._address.port}"
        cert = f"{self._settings.tls}_CLIENT_CERT and {self._settings.tls}_CLIENT_KEY"
        return f"if the broker asks clients for a certificate, set {cert} to one that it accepts"

    def _login_refused(self) -> Problem:
        names, client = self._settings.client, self._credentials
        if not client.username or not client.password:
            reason = "it wants a client's id and key, and one of them is not set"
            remedy = f"set {names}: propeller provision makes them"
        else:
            reason = (
                f"client {client.username} is unknown or disabled, or its key is wrong, expired or revoked, or the MQTT "
                f"identifier {client.mqtt_id} is another client's, or identity is away; identity's log says which"
            )
            remedy = (
                self._settings.refused
                or f"correct {names} and restart; propeller provision --rotate makes new keys"
            )
        return Problem("the MQTT broker refuses this client, trying again", reason, remedy)

    def _not_trusted(self, message: str) -> Problem:
        if "mismatch" in message:
            remedy = "write a host that the certificate is for into the broker's address"
        elif "expired" in message:
            remedy = "renew the broker's certificate, or set this machine's clock"
        else:
            remedy = f"set {self._settings.tls}_CA_CERT to the file of the authority that signed it"
        return Problem(
            _CANNOT,
            f"the broker's certificate is not trusted: {message.rstrip('.')}",
            remedy,
        )


def _root(error: BaseException) -> BaseException:
    """What aiomqtt wrapped; it hides the cause of a failed connect (``raise … from None``)."""
    return error.__cause__ or error.__context__ or error
