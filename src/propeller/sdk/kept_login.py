"""A login that is kept on this machine, so that commands and programs need no password: what ``propeller login`` leaves."""

import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from propeller.errors import PropellerError, StartError, UnauthenticatedError
from propeller.process.files import write_durably
from propeller.sdk.addresses import Login
from propeller.sdk.transport import Transport

_FILE, _CA_FILE, _LOCK_FILE = "login.json", "ca.pem", "login.lock"

_LOCK_AGAIN_S = 0.02
"""Between tries to be the one who renews it, in seconds."""


def login_folder() -> Path:
    """Where logins are kept: ``propeller`` in ``XDG_CONFIG_HOME`` (``~/.config``)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "propeller"


@dataclass
class KeptLogin(Login):
    """A user of a stack elsewhere, by tokens that are kept in a file and renewed there.

    Attributes:
        urls: of the stack's services, by name.
        registry: the address of its registry of programs.
        folder: where it is kept.
        refresh_token: by which another token is had, once.
    """

    urls: dict[str, str] = field(default_factory=dict)
    registry: str = ""
    folder: Path = field(default_factory=login_folder)
    refresh_token: str = field(default="", repr=False)

    @classmethod
    def load(cls, folder: Path | None = None) -> Self | None:
        """What is kept; ``None`` if nothing is.

        Raises:
            StartError: it cannot be read.
        """
        folder = folder or login_folder()
        try:
            kept = json.loads((folder / _FILE).read_text())
            urls = {name: _text(url) for name, url in dict(kept["urls"]).items()}
            found = cls(
                urls["identity"],
                _text(kept["user"]),
                "",
                _text(kept["access_token"]),
                urls=urls,
                registry=_text(kept["registry"]),
                folder=folder,
                refresh_token=_text(kept["refresh_token"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StartError(
                f"{folder / _FILE}: the login that is kept cannot be read ({type(error).__name__}): log in again "
                "(propeller login), or remove the file"
            ) from None
        return found

    @classmethod
    def keep(
        cls,
        urls: Mapping[str, str],
        registry: str,
        user: str,
        tokens: Mapping[str, str],
        ca_cert: Path | None,
        folder: Path | None = None,
    ) -> Self:
        """Keep a login instead of the one that was kept, for this operating-system user alone.

        Args:
            urls: of the stack's services, by name.
            registry: the address of its registry of programs.
            user: who logged in.
            tokens: ``access_token`` and ``refresh_token``, as identity gives them.
            ca_cert: a file with the certificate of the stack's own authority, which is kept too.
            folder: where.

        Raises:
            StartError: it cannot be written.
        """
        folder = folder or login_folder()
        made = cls(urls["identity"], user, "", urls=dict(urls), registry=registry, folder=folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with made.locked():
                (folder / _CA_FILE).unlink(missing_ok=True)
                if ca_cert is not None:
                    write_durably(folder / _CA_FILE, ca_cert.read_bytes(), mode=0o600)
                made.write(tokens)
        except OSError as error:
            raise StartError(
                f"{error.filename or folder}: the login cannot be kept: {error.strerror}"
            ) from None
        return made

    @property
    def ca_cert(self) -> Path | None:
        """The certificate of the stack's own authority, if it has one."""
        file = self.folder / _CA_FILE
        return file if file.exists() else None

    @property
    def token(self) -> str:
        """The token that services are shown."""
        return self._token

    def remove(self) -> None:
        """Keep it no more; another one that has taken its place stays."""
        with self.locked():
            if self._is_that_of(type(self).load(self.folder)):
                for name in (_FILE, _CA_FILE):
                    (self.folder / name).unlink(missing_ok=True)

    async def renew(self, transport: Transport) -> Any:
        """Have another token: that which another process got meanwhile, or a new one; a refresh token is good once.

        Raises:
            UnauthenticatedError: it has ended, or is kept no more.
            PropellerError: identity answers no tokens.
        """
        refused = self._token
        async with self._locked_by(transport):
            latest = type(self).load(self.folder)
            if latest is None or not self._is_that_of(latest):
                # Another stack must not be shown its token, and what was ended must not be kept anew.
                raise UnauthenticatedError(
                    f"the login of {self.user} at {self.identity} is kept no more: "
                    + (
                        "it was ended (propeller logout)"
                        if latest is None
                        else "another one has taken its place"
                    )
                    + "; log in again (propeller login)"
                )
            if latest.token not in {"", refused}:
                self._token, self.refresh_token = latest.token, latest.refresh_token
                return None
            bearer = {"Authorization": f"Bearer {self.refresh_token}"}
            answer = await transport.send(
                "POST", f"{self.identity}/users/tokens/refresh", headers=bearer, auth=None
            )
            if answer.status_code in {401, 403}:
                raise UnauthenticatedError(
                    f"the login of {self.user} at {self.identity} has ended: log in again (propeller login)"
                )
            if answer.is_success:
                self.write(_tokens_in(answer, self.identity))
            return answer

    def _is_that_of(self, other: "KeptLogin | None") -> bool:
        """Whether another one is of the same user of the same stack."""
        return other is not None and (other.identity, other.user) == (self.identity, self.user)

    def write(self, tokens: Mapping[str, str]) -> None:
        """Keep tokens instead of those that were kept."""
        self._token, self.refresh_token = tokens["access_token"], tokens["refresh_token"]
        kept = {
            "urls": self.urls,
            "registry": self.registry,
            "user": self.user,
            "access_token": self._token,
            "refresh_token": self.refresh_token,
        }
        write_durably(self.folder / _FILE, json.dumps(kept, indent=1).encode(), mode=0o600)

    @asynccontextmanager
    async def _locked_by(self, transport: Transport) -> AsyncIterator[None]:
        """As ``locked``, without holding up an event loop: who has it may need that loop to end."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / _LOCK_FILE).open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await transport.sleep(_LOCK_AGAIN_S)
                else:
                    break
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that changes it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / _LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _tokens_in(answer: httpx.Response, identity: str) -> dict[str, str]:
    """The tokens in an answer of identity.

    Raises:
        PropellerError: there are none.
    """
    try:
        told = answer.json()
        return {name: _text(told[name]) for name in ("access_token", "refresh_token")}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PropellerError(
            f"{identity} answered no tokens: is that the identity service of a stack?"
        ) from None


def require_login() -> KeptLogin:
    """The login that is kept on this machine.

    Raises:
        StartError: there is none.
    """
    login = KeptLogin.load()
    if login is None:
        raise StartError(
            "nobody has logged in to a stack here: propeller login --url https://fleet.example --user NAME"
        )
    return login
