"""A token server as GHCR and Docker Hub have one, which Debian's docker-registry trusts by its certificate."""

import base64
import datetime as dt
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.http_servers import Answer, RecordingServer
from support.registries import basic

ISSUER, SERVICE = "test-tokens", "test-registry"

DENIED = "denied/"
"""For repositories in it the token server answers 403, as GHCR does."""

UNGRANTED = "ungranted/"
"""For repositories in it there are tokens, which do not allow anything, as the specification says."""


class TokenServer:
    """Gives its one user tokens for all repositories, but for those that begin with ``DENIED`` and ``UNGRANTED``.

    Attributes:
        issued: every token that was given.
    """

    def __init__(self, login: tuple[str, str]) -> None:
        self.issued: list[str] = []
        self._login = basic(login)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _certificate(self._key)
        self._server = RecordingServer(self._answer)

    @property
    def host(self) -> str:
        """Where it is."""
        return self._server.host

    @contextmanager
    def running(self) -> Iterator["TokenServer"]:
        """Answer for the length of the block."""
        with self._server.running():
            yield self

    def configuration(self, folder: Path) -> list[str]:
        """The lines of docker-registry's configuration that name this server."""
        bundle = folder / "tokens.pem"
        bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        return [
            "auth:",
            "  token:",
            f"    realm: http://{self._server.host}/token",
            f"    service: {SERVICE}",
            f"    issuer: {ISSUER}",
            f"    rootcertbundle: {bundle}",
        ]

    def token(self, scope: str) -> str:
        """A token for a scope, ``repository:NAME:ACTIONS``."""
        kind, name, actions = scope.split(":")
        access = (
            []
            if name.startswith(UNGRANTED)
            else [{"type": kind, "name": name, "actions": actions.split(",")}]
        )
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "user", "aud": SERVICE, "access": access, "jti": uuid.uuid4().hex,
            "iat": now, "nbf": now - 60, "exp": now + 300,
        }  # fmt: skip
        chain = [base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()]
        issued = jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": chain})
        self.issued.append(issued)
        return issued

    def _answer(self, path: str, authorization: str | None) -> Answer:
        status, document = self._decide(parse_qs(urlsplit(path).query), authorization)
        return status, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def _decide(
        self, query: Mapping[str, list[str]], authorization: str | None
    ) -> tuple[int, dict[str, Any]]:
        scope = query["scope"][0]
        assert query["service"] == [SERVICE]
        if authorization != self._login:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        if scope.split(":")[1].startswith(DENIED):
            return 403, {"errors": [{"code": "DENIED", "message": "permission denied"}]}
        return 200, {"token": self.token(scope), "expires_in": 300}


def _certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Self-signed, for one day."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
