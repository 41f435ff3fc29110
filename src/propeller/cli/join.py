"""``propeller join``: become a device of a stack by a token, keep that identity in a folder, and run a proplet with it."""

import hashlib
import json
import os
import secrets
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx

from propeller.errors import PropellerError, StartError
from propeller.mqtt.address import BrokerAddress
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import keep_private, write_durably
from propeller.process.http import error_text
from propeller.process.tls import CA_VARIABLE, trust
from propeller.proplet.policy import NATIVE_POLICY, write_native_policy
from propeller.protocol.join_tokens import JoinToken

DEVICE_FILE, CA_FILE, LOCK_FILE, PROPLET_FOLDER = "device.json", "ca.pem", "lock", "proplet"
"""What a state folder has: the identity, the authority's certificate, the lock of the running proplet, and what that keeps."""

NONCE_FILE = "joining"
"""While it joins: what it made for this, by which it may ask again for an answer that it did not get. Its key follows from it."""

_NONCE_BYTES, _TRIES = 32, 3

_TIMEOUT_S, _REFRESH_TIMEOUT_S = 30.0, 5.0
_MAX_CA_BYTES = 64 * 1024
"""Of an authority's certificate: more is none."""

_FORMAT = 1


@dataclass(frozen=True)
class JoinedDevice:
    """Who this device is, as its state folder keeps it.

    Attributes:
        token: SHA-256 of the token that it joined with: the same one again is no other device.
        identity_url: where identity is.
        has_authority: whether the certificates of the services are of the authority in ``ca.pem``.
        id: the client's id.
        key: its key.
        domain_id: of its domain.
        channel_id: of its channel.
        name: what it is called.
        tags: by which experiments choose it.
        broker: ``host``, ``port``, ``tls``.
        coordinator_url: where the coordinator is; the next two likewise.
        model_registry_url: see there.
        data_store_url: see there; ``None`` if there is none.
        data: the device's own data, if it has some.
        label: of a table, the column with labels.
        native_python: its interpreter for native programs, which run where it has one.
    """

    token: str
    identity_url: str
    has_authority: bool
    id: str
    key: str = field(repr=False)
    domain_id: str
    channel_id: str
    name: str
    tags: list[str]
    broker: dict[str, Any]
    coordinator_url: str
    model_registry_url: str
    data_store_url: str | None = None
    data: str | None = None
    label: str | None = None
    native_python: str | None = None

    def environment(self, state: Path) -> dict[str, str]:
        """The settings of the proplet that it runs."""
        broker = BrokerAddress(self.broker["host"], self.broker["port"], self.broker["tls"])
        tags = [*self.tags, os.environ.get("PROPLET_TAGS", "")]
        return {
            "PROPLET_DOMAIN_ID": self.domain_id,
            "PROPLET_CHANNEL_ID": self.channel_id,
            "PROPLET_CLIENT_ID": self.id,
            "PROPLET_CLIENT_KEY": self.key,
            "PROPLET_INSTANCE_ID": self.name,
            "PROPLET_TAGS": ",".join(filter(None, tags)),
            "PROPLET_MQTT_ADDRESS": str(broker),
            "COORDINATOR_URL": self.coordinator_url,
            "MODEL_REGISTRY_URL": self.model_registry_url,
            "DATA_STORE_URL": "" if self.data else self.data_store_url or "",
            "PROPLET_DATA": self.data or "",
            "PROPLET_DATA_LABEL": self.label or "",
            "PROPLET_STATE": str(state / PROPLET_FOLDER),
            "PROPLET_JOINED": str(state),
            **({CA_VARIABLE: str(state / CA_FILE)} if self.has_authority else {}),
            **self._native(state),
        }

    def _native(self, state: Path) -> dict[str, str]:
        """Has it run native programs of registries on the stack's own machine, or those that the policy of the environment names."""
        if self.native_python is None:
            return {}
        policy = os.environ.get("PROPLET_POLICY") or str(state / NATIVE_POLICY)
        return {"PROPLET_NATIVE_PYTHON": self.native_python, "PROPLET_POLICY": policy}

    @classmethod
    def told(cls, answer: Mapping[str, Any]) -> dict[str, Any]:
        """What identity says of the device; what is for its owner alone to say it cannot."""
        names = [field for field in cls.__dataclass_fields__ if field not in _OWNERS]
        return {name: answer[name] for name in names if name in answer}


_OWNERS = ("data", "label", "native_python")
"""Fields of a device's identity file that are its owner's."""


def run_join(
    token: str | None,
    state: Path,
    data: Path | None = None,
    label: str | None = None,
    native_python: Path | None = None,
) -> NoReturn:
    """Join, unless the folder says that this was done, and become a proplet: this process runs it from then on.

    Args:
        token: of ``propeller device add``; ``None`` to go on with the kept identity.
        state: the folder; made if it is missing.
        data: the device's own data, a file or folder that stays here; ``None`` for what was given before, or a data store's.
        label: of a table, the column with labels.
        native_python: its interpreter for native programs; ``None`` for what was given before, or none.

    Raises:
        PropellerError: the data cannot be read; or the token is not good, or cannot be redeemed; the text says what to do.
    """
    keep_private()
    state = state.absolute()
    if data is not None:
        _check_data(data, label)  # before the token is used
    elif label is not None:
        raise StartError("--label: names a column of --data FILE: give that, too")
    if token is None and not (state / DEVICE_FILE).exists():
        raise StartError(
            f"no device has joined on {state}: give the token of 'propeller device add NAME', or the folder of one that has (--state)"
        )
    lock = _open_folder(state)
    try:
        device = _identify(token, state)
        if data is not None and (device.data, device.label) != (str(data.absolute()), label):
            device = replace(device, data=str(data.absolute()), label=label)
            _keep(device, state)
        if native_python is not None:
            device = replace(device, native_python=str(native_python.absolute()))
            _keep(device, state)
        if device.native_python is not None:
            host = urlsplit(device.identity_url).hostname or ""
            hosts = dict.fromkeys((host, "127.0.0.1", "localhost"))
            write_native_policy(
                state / NATIVE_POLICY, [f"{one}:*/*" for one in hosts], "propeller join --native-python"
            )
        print(f"{device.name} ({device.id}) runs; its identity is in {state}", flush=True)
        os.set_inheritable(lock.descriptor, True)
        os.environ.update(device.environment(state))
        # In the place of this process: what redeeming a token needs does not stay in the device's memory.
        os.execv(sys.executable, [sys.executable, "-m", "propeller", "serve", "proplet"])  # noqa: S606 - this interpreter
    finally:  # of an error alone
        lock.release()


def _identify(token: str | None, state: Path) -> JoinedDevice:
    device = _load(state)
    if token is not None:
        return _join_once(token, state, device)
    if device is None:  # removed just now
        raise StartError(f"{state / DEVICE_FILE} is gone")
    return _refresh(device, state)


def _check_data(data: Path, label: str | None) -> None:
    from propeller.samples.device_data import read_device_data

    found = read_device_data(data, label)
    columns = ", ".join(f"{name} {what}" for name, what in found.columns.items())
    print(f"{found.samples} samples in {data}{': ' if columns else ''}{columns}")
    if found.left_out:
        print(f"Programs are not given these columns, which are texts: {', '.join(found.left_out)}")


def _open_folder(state: Path) -> FileLock:
    """The folder, for this user alone, and locked: two proplets with one identity disturb each other."""
    lock = FileLock(state / LOCK_FILE)
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = {one.name for one in state.iterdir()}
        if DEVICE_FILE not in names and (others := sorted(names - {LOCK_FILE, CA_FILE, NONCE_FILE})):
            raise StartError(
                f"--state: {state} has other files ({', '.join(others[:3])}): a device's folder is for its identity alone; choose a new one"
            )
        state.chmod(0o700)
        lock.acquire(0)
    except LockedError:
        raise StartError(
            f"another 'propeller join' runs on {state}: end that one, or give this device a folder of its own (--state)"
        ) from None
    except OSError as error:
        raise StartError(
            f"--state: {state} cannot be used: {error.strerror}; choose another folder"
        ) from None
    return lock


def _load(state: Path) -> JoinedDevice | None:
    file = state / DEVICE_FILE
    try:
        kept = json.loads(file.read_text())
        kept.pop("format")
        return JoinedDevice(**kept)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StartError(
            f"{file} is damaged: join anew, with another folder (--state) and another token ('propeller device remove NAME', "
            "then 'propeller device add NAME')"
        ) from None


def _keep(device: JoinedDevice, state: Path) -> None:
    content = json.dumps({"format": _FORMAT, **asdict(device)}, indent=1)
    write_durably(state / DEVICE_FILE, content.encode(), mode=0o600)


def _join_once(token: str, state: Path, device: JoinedDevice | None) -> JoinedDevice:
    read = JoinToken.decode(token)
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    if device is None:
        return _redeem(read, digest, state)
    if device.token != digest:
        raise StartError(
            f"{device.name} has joined on {state}: leave the token out to go on as it, or choose another folder (--state)"
        )
    return _refresh(device, state)


def _redeem(token: JoinToken, digest: str, state: Path) -> JoinedDevice:
    url = token.identity_url
    if token.fingerprint is not None:
        write_durably(state / CA_FILE, _fetch_authority(url, token.fingerprint).encode(), mode=0o600)
    body = {"secret": token.secret.hex(), "nonce": _nonce(digest, state)}
    with _client(url, state if token.fingerprint is not None else None) as http:
        answer = _ask_to_join(http, url, body)
    if not answer.is_success:
        raise StartError(f"identity at {url} did not let this device in: {error_text(answer)}")
    device = _device_of(answer, url, digest, has_authority=token.fingerprint is not None)
    _keep(device, state)
    (state / NONCE_FILE).unlink(missing_ok=True)
    return device


def _nonce(digest: str, state: Path) -> str:
    """What this device made for a token when it asked first, on the disk before it asks: a lost answer may be asked for again."""
    file = state / NONCE_FILE
    try:
        kept, _, nonce = file.read_text().partition(" ")
        if kept == digest and len(bytes.fromhex(nonce)) == _NONCE_BYTES:
            return nonce
    except (OSError, ValueError):
        pass  # there is none, or it is another's
    nonce = secrets.token_hex(_NONCE_BYTES)
    write_durably(file, f"{digest} {nonce}".encode(), mode=0o600)
    return nonce


def _ask_to_join(http: httpx.Client, url: str, body: dict[str, str]) -> httpx.Response:
    """Ask, and again where a connection that there was broke: with the same nonce the answer is the same.

    Raises:
        StartError: identity cannot be reached.
    """
    for left in reversed(range(_TRIES)):
        try:
            return http.post(f"{url}/devices/join", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was asked
            raise _unreachable(url, error) from None
        except httpx.TransportError as error:
            if not left:
                raise _unreachable(url, error) from None
    raise AssertionError("unreachable")


def _device_of(answer: httpx.Response, url: str, digest: str, *, has_authority: bool) -> JoinedDevice:
    try:
        told = answer.json()
        return JoinedDevice(
            **(
                JoinedDevice.told(told)
                | {"token": digest, "identity_url": url, "has_authority": has_authority}
            )
        )
    except (ValueError, TypeError):
        raise StartError(
            f"{url} answered what no identity service does: is the address right, and its version?"
        ) from None


def _fetch_authority(url: str, fingerprint: bytes) -> str:
    """The authority's certificate, PEM: over a connection that is believed nothing, and compared with what the token says."""
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with httpx.Client(verify=unverified, timeout=_TIMEOUT_S, trust_env=False) as http:
            shown = _start_of(http, f"{url}/devices/ca")
    except httpx.TransportError as error:
        raise _unreachable(url, error) from None
    try:
        certificate = ssl.PEM_cert_to_DER_cert(shown)
    except ValueError:
        certificate = b""
    if hashlib.sha256(certificate).digest() != fingerprint:
        raise StartError(
            f"{url} does not show the certificate authority that the token was made for: either the stack has another one since, "
            "and 'propeller device add' there gives a good token; or somebody stands between this device and the stack, and nothing was sent"
        )
    return ssl.DER_cert_to_PEM_cert(certificate)


def _start_of(http: httpx.Client, url: str) -> str:
    """The start of a good answer, else nothing: whoever answers is not known yet, and may send without end."""
    with http.stream("GET", url, headers={"accept-encoding": "identity"}) as answer:
        content, begun = b"", time.monotonic()
        for piece in answer.iter_raw() if answer.is_success else ():
            content += piece
            if len(content) > _MAX_CA_BYTES or time.monotonic() - begun > _TIMEOUT_S:
                break
    return content[:_MAX_CA_BYTES].decode("ascii", "replace")


def _client(url: str, state: Path | None, timeout_s: float = _TIMEOUT_S) -> httpx.Client:
    """A client of identity; ``state`` is the folder of the authority that it believes, ``None`` for those that the system does."""
    verify = trust(state / CA_FILE, CA_VARIABLE) if state is not None else url.startswith("https://")
    return httpx.Client(verify=verify, timeout=timeout_s, trust_env=False)


def _unreachable(url: str, error: httpx.TransportError) -> PropellerError:
    what = (
        "no answer in time"
        if isinstance(error, httpx.TimeoutException)
        else str(error) or type(error).__name__
    )
    if "CERTIFICATE_VERIFY_FAILED" in what:
        return StartError(
            f"the certificate of identity at {url} is not good: {what}; see that this machine's clock is right, and that the stack "
            "was started with the --host of this address"
        )
    return StartError(
        f"identity at {url} cannot be reached from this device: {what}; see that the stack runs, and that no firewall is between "
        "(identity, broker, coordinator and model registry have a port each)"
    )


def _refresh(device: JoinedDevice, state: Path) -> JoinedDevice:
    """The device with the name, tags and addresses that identity has for it now; as it was, if identity is away.

    Raises:
        StartError: identity does not know the device any more.
    """
    url = device.identity_url
    try:
        with _client(url, state if device.has_authority else None, _REFRESH_TIMEOUT_S) as http:
            answer = http.get(f"{url}/devices/self", auth=(device.id, device.key))
    except httpx.TransportError as error:
        print(f"note: {_unreachable(url, error)}; going on with what is kept", file=sys.stderr)
        return device
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise StartError(
            f"{device.name} was removed from the stack, or disabled: {error_text(answer)}; to join again, "
            f"'propeller device add NAME' there, and on this device another folder (--state; this one is {state})"
        )
    if not answer.is_success:
        print(
            f"note: identity at {url}: {error_text(answer)}; going on with what is kept",
            file=sys.stderr,
        )
        return device
    told = answer.json()
    current = replace(device, **JoinedDevice.told(told))
    if current != device:
        _keep(current, state)
    return current
