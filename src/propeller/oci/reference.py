"""Names of artifacts: ``[registry/]repository[:tag][@digest]``, as docker and oras write them."""

import ipaddress
import re
from dataclasses import dataclass

from propeller.digests import is_digest
from propeller.oci.errors import InvalidReferenceError

_HOST = re.compile(r"(?P<name>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::(?P<port>[0-9]{1,5}))?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_USERINFO = re.compile(r"//[^/]*@|^[^/@:]+:[^/@]*@(?!sha256:)")
_MAX_REPOSITORY_LENGTH = 255

DOCKER_HUB_API = "registry-1.docker.io"
"""Docker Hub's names say ``docker.io``; its API is at another host."""

_HOW_TO_WRITE = "write [registry/]repository[:tag][@sha256:…], as in ghcr.io/user/fl-client-wasm:latest"


def is_repository(text: str) -> bool:
    """Whether a text is a repository name of the OCI distribution specification (``a/b-c``)."""
    return len(text) <= _MAX_REPOSITORY_LENGTH and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text is a tag of the OCI distribution specification."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True)
class Registry:
    """A registry: its host, with the port if it has one, and whether it speaks plain HTTP."""

    host: str
    plain_http: bool = False

    @classmethod
    def parse(cls, text: str) -> "Registry":
        """Read ``ghcr.io``, ``host:5000``, ``http://host:5000`` or ``https://host``.

        Without a scheme, plain HTTP is for this machine's loopback only.

        Raises:
            InvalidReferenceError: it is not a host.
        """
        scheme, _, rest = text.strip().rpartition("://")
        host = rest.rstrip("/").lower()
        match = _HOST.fullmatch(host)
        if (
            scheme not in {"", "http", "https"}
            or match is None
            or int(match["port"] or 1) not in range(1, 65536)
        ):
            raise InvalidReferenceError(
                f"{_shown(text)} is not a registry",
                "write its host, as in ghcr.io or http://local-registry:5000",
            )
        if host == "index.docker.io":
            host = "docker.io"
        return cls(host, scheme == "http" or (scheme == "" and _is_loopback(match["name"])))

    @property
    def base_url(self) -> str:
        """Where its API is."""
        host = DOCKER_HUB_API if self.host == "docker.io" else self.host
        return f"{'http' if self.plain_http else 'https'}://{host}"

    def __str__(self) -> str:
        """The host, with a scheme only where ``parse`` would take another one."""
        if Registry.parse(self.host) == self:
            return self.host
        return f"{'http' if self.plain_http else 'https'}://{self.host}"


_API_VERSIONS = {"v1", "v2"}


@dataclass(frozen=True)
class DefaultRegistry:
    """What is put before a reference that names no registry: a registry, and perhaps a namespace in it."""

    registry: Registry
    namespace: str = ""

    @classmethod
    def parse(cls, text: str) -> "DefaultRegistry":
        """Read a registry, or one with a namespace: ``ghcr.io``, ``https://ghcr.io/user``.

        A path that is an API's version alone (``https://index.docker.io/v1/``, as Docker writes it) is no namespace.

        Raises:
            InvalidReferenceError: it is neither.
        """
        scheme, mark, rest = text.strip().rpartition("://")
        host, _, path = rest.partition("/")
        namespace = path.strip("/")
        if namespace in _API_VERSIONS:
            namespace = ""
        if namespace and not is_repository(namespace):
            raise InvalidReferenceError(
                f"{_shown(text)}: {namespace[:100]!r} is no part of a repository name",
                "write the registry alone, as in ghcr.io, or with a namespace in lower case, as in ghcr.io/user",
            )
        return cls(Registry.parse(f"{scheme}{mark}{host}"), namespace)


DOCKER_HUB = DefaultRegistry(Registry("docker.io"))


@dataclass(frozen=True)
class Reference:
    """An artifact in a registry, by tag or digest; where both are given, the digest counts."""

    registry: Registry
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, default: DefaultRegistry = DOCKER_HUB) -> "Reference":
        """Read a reference; one that names no registry is in ``default``, one without tag and digest is ``latest``.

        As docker reads it, the first part is a registry if it has a dot or a port or is ``localhost``; here also
        if a scheme stands before it (``http://host/x`` asks for plain HTTP), or if it is ``default``'s host.

        Raises:
            InvalidReferenceError: with what is wrong and how it is written.
        """
        text = text.strip()
        scheme, _, rest = text.rpartition("://")
        name, at, digest = rest.partition("@")
        first, slash, path = name.partition("/")
        if slash and (scheme or first.lower() == default.registry.host):
            registry = Registry.parse(f"{scheme}://{first}") if scheme else default.registry
        elif slash and (first == "localhost" or "." in first or ":" in first):
            registry = Registry.parse(first)
        elif scheme:
            raise InvalidReferenceError(
                f"{_shown(text)} names a registry, but no repository in it", _HOW_TO_WRITE
            )
        else:
            registry, path = default.registry, f"{default.namespace}/{name}" if default.namespace else name
        repository, colon, tag = path.partition(":")
        if registry.host == "docker.io" and "/" not in repository:
            repository = f"library/{repository}"
        _check(text, repository, tag if colon else None, digest if at else None)
        return cls(registry, repository, tag or (None if at else "latest"), digest or None)

    @property
    def target(self) -> str:
        """What the registry is asked for: the digest, or else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        """The reference in full; ``parse`` reads it back."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def _check(text: str, repository: str, tag: str | None, digest: str | None) -> None:
    shown = _shown(text)
    if not is_repository(repository):
        if repository != repository.lower() and is_repository(repository.lower()):
            raise InvalidReferenceError(
                f"{shown}: the repository {repository!r} has upper-case letters",
                "GHCR names are case-sensitive/lower-case: use exactly the name you pushed",
            )
        raise InvalidReferenceError(
            f"{shown} is not an artifact reference: the repository is not valid", _HOW_TO_WRITE
        )
    if tag is not None and not is_tag(tag):
        raise InvalidReferenceError(
            f"{shown} is not an artifact reference: the tag is not valid", _HOW_TO_WRITE
        )
    if digest is not None and not is_digest(digest):
        raise InvalidReferenceError(
            f"{shown} is not an artifact reference: the digest is not sha256: and 64 hexadecimal digits",
            _HOW_TO_WRITE,
        )


def _shown(text: str) -> str:
    """A text for an error; what may be a password in it is left out."""
    return repr(_USERINFO.sub("***@", text[:200]))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
