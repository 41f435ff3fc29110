"""Certificates from files: what a server shows, and what a client trusts and shows. Every fault names its setting."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from propeller.errors import StartError


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

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that shows the certificate.

        Raises:
            StartError: as ``load_into``.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

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
