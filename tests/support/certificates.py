"""TLS certificates for a test: an authority, what it signs for servers and a client, and another authority."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files.

    Attributes:
        ca: the authority that signed every certificate here.
        cert: of a server at 127.0.0.1, with ``key``.
        client_cert: of a client, with ``client_key``.
        other_ca: an authority that signed none of them.
        other_host_cert: of a server at example.org, with ``other_host_key``.
    """

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path
    other_host_cert: Path
    other_host_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Create the certificates and write them into a folder."""
    authority = trustme.CA()

    def issue(name: str, host: str) -> tuple[Path, Path]:
        pair = authority.issue_cert(host)
        cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        pair.private_key_pem.write_to_path(str(key))
        for blob in pair.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return cert, key

    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    server, client = issue("server", "127.0.0.1"), issue("client", "client.example.org")
    return Certificates(
        folder / "ca.pem", *server, *client, folder / "other-ca.pem", *issue("other-host", "example.org")
    )
