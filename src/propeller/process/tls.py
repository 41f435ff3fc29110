"""Certificates from files: what a server shows, and what a client trusts and shows. Every fault names its setting."""

import asyncio
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from propeller.errors import StartError
from propeller.process.logs import get_logger

log = get_logger("tls")

CA_VARIABLE = "PROPELLER_CA_CERT"
"""A file (PEM) with the authorities whose certificates the services of a stack have."""

CHECK_S = 5.0
"""How often the files of a server's certificate are looked at, in seconds."""

WARN_DAYS = 30
"""From so many days before its end on, a certificate is warned of once a day."""

_DAY_S = 86_400.0


Versions = list[tuple[int, int, int] | None]


@dataclass(frozen=True)
class KeyPair:
    """A certificate (with its chain) and its private key, both PEM files, and the settings that named them."""

    cert: Path
    key: Path
    cert_setting: str
    key_setting: str

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have a context show the certificate.

        Raises:
            StartError: a file cannot be read, is not PEM or asks for a passphrase, or the two do not belong together.
        """
        _check_readable(self.cert, self.cert_setting)
        _check_readable(self.key, self.key_setting)
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except _PassphraseError:
            raise StartError(
                f"{self.key_setting}: {self.key} is protected by a passphrase; give a key without one"
            ) from None
        except ssl.SSLError as error:
            raise StartError(self._explain(error)) from None
        except OSError as error:  # replaced just now: links are removed before they are made anew
            raise StartError(
                f"{self.cert_setting} and {self.key_setting}: {self.cert} or {self.key} cannot be read: {error.strerror}"
            ) from None

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that shows the certificate.

        Raises:
            StartError: as ``load_into``.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def versions(self) -> Versions:
        """What tells whether a file was written or replaced."""
        found: Versions = []
        for file in (self.cert, self.key):
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return found

    def _explain(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return (
                f"{self.key_setting}: {self.key} is not the key of the certificate {self.cert} ({self.cert_setting}); "
                "give the two that were made together"
            )
        return (
            f"{self.cert_setting} and {self.key_setting}: {self.cert} and {self.key} are not a PEM certificate "
            "and its PEM private key"
        )


def pair(cert: Path | None, key: Path | None, cert_setting: str, key_setting: str) -> KeyPair | None:
    """The two as a pair; ``None`` if neither is set.

    Raises:
        StartError: one of them is missing.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        there, missing = (cert_setting, key_setting) if key is None else (key_setting, cert_setting)
        raise StartError(f"{missing}: not set, but {there} is; set both or neither")
    return KeyPair(cert, key, cert_setting, key_setting)


async def keep_current(shown: KeyPair, seen: Versions, reload: Callable[[], None]) -> None:
    """Have a server show what is in its files, whenever they change, and warn before the certificate ends; until it is cancelled.

    Args:
        shown: the files.
        seen: ``shown.versions()`` from before the server read them.
        reload: has the server show them from now on; it is called when they have changed and can be used.
    """
    warned_at = float("-inf")
    while True:
        now = asyncio.get_running_loop().time()
        if now - warned_at >= _DAY_S:
            await asyncio.to_thread(_warn_of_end, shown)
            warned_at = now
        await asyncio.sleep(CHECK_S)
        found = shown.versions()
        if found == seen:
            continue
        seen = found
        try:
            await asyncio.to_thread(shown.server_context)  # a live context must not get half of a pair
            reload()
        except StartError as error:
            log.warning(
                "the certificate has changed and cannot be used, the last one is kept", reason=str(error)
            )
        else:
            log.info("the certificate has changed", file=str(shown.cert))
            warned_at = float("-inf")


def _warn_of_end(shown: KeyPair) -> None:
    from propeller.process.certificates import read_certificate  # 50 ms, for those that have a certificate

    try:
        certificate = read_certificate(shown.cert)
    except StartError as error:
        log.warning("the certificate cannot be read", reason=str(error))
        return
    if (days := certificate.days_left()) < WARN_DAYS:
        log.warning(
            "the certificate ends soon: make another one"
            if days >= 0
            else "the certificate has ended: nobody connects until there is another one",
            file=str(shown.cert),
            setting=shown.cert_setting,
            days=days,
            ends=certificate.not_after.isoformat(),
        )


def stack_trust(ca_cert: Path | None = None) -> ssl.SSLContext | None:
    """Whom a client of a stack's services believes: the authorities in a file, and no others; ``None`` for those that systems trust.

    Args:
        ca_cert: the file; else that of ``PROPELLER_CA_CERT``.

    Raises:
        StartError: it cannot be read or has no certificate.
    """
    if ca_cert is not None:
        return trust(ca_cert, "the authority's certificate")
    named = os.environ.get(CA_VARIABLE)
    return trust(Path(named), CA_VARIABLE) if named else None


def trust_stack(ca_cert: Path | str | None) -> None:
    """Have this process and its children believe a stack's authority, if it has one: for commands that are about one stack."""
    if ca_cert is not None:
        os.environ[CA_VARIABLE] = str(ca_cert)


def add_stack_trust(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have a context believe the authorities in ``PROPELLER_CA_CERT`` beside those that it believes: a stack's registry is one of many.

    Raises:
        StartError: the file cannot be read or has no certificate.
    """
    if stack_trust() is not None:
        context.load_verify_locations(os.environ[CA_VARIABLE])
    return context


def trust(ca_cert: Path, setting: str) -> ssl.SSLContext:
    """A context for a client that trusts the certificates of one file, and no others.

    Raises:
        StartError: the file cannot be read or has no certificate.
    """
    _check_readable(ca_cert, setting)
    try:
        return ssl.create_default_context(cafile=str(ca_cert))
    except ssl.SSLError:
        raise StartError(f"{setting}: {ca_cert} holds no PEM certificate") from None


class _PassphraseError(Exception):
    """A key asks for a passphrase: OpenSSL by itself would ask at the terminal, and wait."""


def _no_passphrase() -> str:
    raise _PassphraseError


def _check_readable(file: Path, setting: str) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise StartError(f"{setting}: {file} cannot be read: {error.strerror}") from None
