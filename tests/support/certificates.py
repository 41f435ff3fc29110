"""Certificates made for a test: an authority, what it signs for this machine's loopback, and another authority."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path
    elsewhere_cert: Path
    elsewhere_key: Path


def make(folder: Path) -> Certificates:
    """Write them into a folder."""
    authority = trustme.CA()

    def issued(name: str, host: str) -> tuple[Path, Path]:
        pair = authority.issue_cert(host)
        cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        pair.private_key_pem.write_to_path(str(key))
        for blob in pair.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return cert, key

    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    server, client = issued("server", "127.0.0.1"), issued("client", "client.example.org")
    return Certificates(
        folder / "ca.pem", *server, *client, folder / "other-ca.pem", *issued("elsewhere", "example.org")
    )
