"""A small certificate authority, the certificates that it signs for servers, and what a certificate says (X.509, RFC 5280).

Keys are ECDSA over P-256, which every TLS library takes.
"""

import datetime as dt
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from propeller.errors import StartError
from propeller.process.file_lock import FileLock
from propeller.process.files import write_durably

AUTHORITY_DAYS, SERVER_DAYS = 3650, 397
"""How long certificates are good, in days."""

RENEW_DAYS = 60
"""With less left a server's certificate is made again."""

_CLOCK_DIFFERENCE = dt.timedelta(hours=24)
"""Certificates are good from so long before they are made: a device's clock may be behind."""

_MAX_COMMON_NAME = 64


@dataclass(frozen=True)
class Certificate:
    """What a certificate says.

    Attributes:
        file: it is in.
        subject: whose it is.
        issuer: who signed it.
        hosts: names and addresses that it is good for.
        not_after: when it ends, in UTC.
        fingerprint: SHA-256 of it, in hexadecimal.
    """

    file: Path
    subject: str
    issuer: str
    hosts: tuple[str, ...]
    not_after: dt.datetime
    fingerprint: str

    def days_left(self) -> int:
        """Whole days until it ends; below 0 once it has ended."""
        return math.floor((self.not_after - _now()) / dt.timedelta(days=1))

    def explain_end(self) -> str:
        """When it ends or has ended, for a person."""
        days, until = self.days_left(), f"{self.not_after:%Y-%m-%d}"
        return f"ends on {until}, in {days} days" if days >= 0 else f"ended on {until}: nobody connects"


def read_certificate(file: Path) -> Certificate:
    """The first certificate of a PEM file.

    Raises:
        StartError: there is none, or it is malformed.
    """
    return _describe(_load(file), file)


def parse_certificate(content: bytes, source: Path) -> Certificate:
    """A certificate in DER, as a server shows it; ``source`` stands for its file.

    Raises:
        StartError: it is malformed.
    """
    try:
        return _describe(x509.load_der_x509_certificate(content), source)
    except ValueError:
        raise StartError(f"{source} shows no certificate") from None


def _describe(found: x509.Certificate, file: Path) -> Certificate:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(name.value) for name in names]
    except x509.ExtensionNotFound:
        hosts = []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise StartError(f"{file}: its extensions cannot be read: {error}; make another one") from None
    return Certificate(
        file,
        _common_name(found.subject),
        _common_name(found.issuer),
        tuple(hosts),
        found.not_valid_after_utc,
        found.fingerprint(hashes.SHA256()).hex(),
    )


class Authority:
    """A folder with an authority (``ca.pem``, ``ca-key.pem``) and what it signed for servers (``NAME.pem``, ``NAME-key.pem``)."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet."""
        self._folder = folder.absolute()
        self.file, self._key_file = self._folder / "ca.pem", self._folder / "ca-key.pem"

    def ensure(self) -> None:
        """Make the authority if there is none.

        Raises:
            StartError: it cannot be read or written, or half of it is missing.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._folder / "lock"):
                if not self.file.exists() and not self._key_file.exists():
                    self._make()
        except OSError as error:
            raise StartError(f"{self._folder}: {error.strerror}; choose another folder") from None
        self._load_pair()

    def ensure_server(self, name: str, hosts: Sequence[str]) -> tuple[Path, Path]:
        """A server's certificate and key, made again if other hosts are wanted or it ends soon.

        Args:
            name: what the files are called.
            hosts: names and IP addresses that clients connect to; a name may begin with ``*.``.

        Raises:
            StartError: a host is none, or files cannot be read or written.
        """
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        authority, authority_key = self._load_pair()
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"
        try:
            with FileLock(self._folder / "lock"):  # two at once would leave a pair of halves
                if not _is_good(cert, key, authority, names):
                    self._make_server(cert, key, authority, authority_key, names)
        except OSError as error:
            raise StartError(f"{cert}: {error.strerror}") from None
        return cert, key

    def _make_server(
        self,
        cert: Path,
        key: Path,
        authority: x509.Certificate,
        authority_key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
    ) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        public = own.public_key()
        signed = (
            _begin(str(names[0].value), authority.subject, public, SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        _write_key(key, own)
        write_durably(cert, _pem(signed), mode=0o644)

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Propeller CA {serial % 16**8:08x}")])
        signed = (
            _begin("", name, key.public_key(), AUTHORITY_DAYS)
            .subject_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_key(self._key_file, key)
        write_durably(self.file, _pem(signed), mode=0o644)

    def _load_pair(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The authority.

        Raises:
            StartError: there is none, or its files cannot be used.
        """
        certificate = _load(self.file)
        try:
            key = serialization.load_pem_private_key(self._key_file.read_bytes(), None)
        except OSError as error:
            raise StartError(
                f"{self._key_file}: {error.strerror}; it belongs to {self.file.name}: restore it, or move both away for a new authority"
            ) from None
        except (ValueError, TypeError):
            raise StartError(f"{self._key_file} holds no PEM private key without a passphrase") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise StartError(f"{self._key_file} is not the key of {self.file.name}: restore the one that is")
        return certificate, key


def _begin(
    common_name: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_DIFFERENCE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if not common_name:
        return builder
    name = x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_MAX_COMMON_NAME])
    return builder.subject_name(x509.Name([name]))


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        name = host.removeprefix("*.").encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not name or any(one in name for one in " /:@*\0") or len(name) > 253:
        raise StartError(f"{host[:100]!r} is not a host name or an IP address")
    return x509.DNSName(f"*.{name}" if host.startswith("*.") else name)


def _is_good(cert: Path, key: Path, authority: x509.Certificate, names: list[x509.GeneralName]) -> bool:
    """Whether what is there will do."""
    try:
        found = _load(cert)
        own = serialization.load_pem_private_key(key.read_bytes(), None)
        found.verify_directly_issued_by(authority)
        there = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, another one is made
        return False
    left = found.not_valid_after_utc - _now()
    return (
        own.public_key() == found.public_key()
        and list(there) == names
        and left > dt.timedelta(days=RENEW_DAYS)
    )


def _load(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise StartError(f"{file} holds no PEM certificate") from None


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(file, encoded, mode=0o600)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
