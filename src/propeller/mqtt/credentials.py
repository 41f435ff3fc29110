"""Who connects to a broker, and what the broker is to say when the connection is lost."""

from dataclasses import dataclass, field


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
