"""A broker's address, a client's credentials, and the will that the broker publishes for it."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PLAIN = frozenset({"tcp", "mqtt"})
_TLS = frozenset({"ssl", "tls", "mqtts"})


@dataclass(frozen=True)
class BrokerAddress:
    """A broker's host and port, and whether the connection is TLS."""

    host: str
    port: int = 1883
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> "BrokerAddress":
        """Read ``tcp://host:1883``, ``mqtts://host``, ``host:port``, ``host`` or ``[v6]:port``.

        Raises:
            ValueError: the scheme, host or port is not one; the text says what is accepted.
        """
        url = urlsplit(text if "://" in text else f"tcp://{text}")
        known = url.scheme in _PLAIN | _TLS
        try:
            port = url.port
        except ValueError:
            known, port = False, None
        if not known or not url.hostname or url.path.strip("/"):
            raise ValueError(
                f"{text!r} is not a broker's address; write tcp://host:1883 or mqtts://host:8883"
            )
        tls = url.scheme in _TLS
        return cls(url.hostname, port or (8883 if tls else 1883), tls)

    def __str__(self) -> str:
        """The address as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'tcp'}://{host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """Who connects: the MQTT client identifier, the client's id (user name) and its key (password)."""

    mqtt_id: str
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Will:
    """What the broker publishes when the connection is lost."""

    topic: str
    payload: bytes
    qos: int = 1
