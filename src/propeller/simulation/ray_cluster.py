"""The connection to an existing Ray cluster, and its nodes."""

import contextlib
import importlib.util
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from propeller.errors import InvalidError, StartError, UnavailableError

_CONNECT_S = 5.0
_PROBE_S = 30.0
"""How long Ray may take to connect: a second as a rule; by itself it tries for minutes, and its end may be the process's."""

_PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"refused: {type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class RayNode:
    """A node of the cluster that is alive.

    Attributes:
        id: Ray's.
        address: of its machine.
        processors: how many Ray has there for what runs in it.
    """

    id: str
    address: str
    processors: int


class RayCluster:
    """A cluster that this process is connected to.

    Attributes:
        ray: the module.
        address: as it was given.
    """

    def __init__(self, ray: Any, address: str) -> None:
        self.ray, self.address = ray, address

    def nodes(self) -> list[RayNode]:
        """The nodes that have processors, in the order of their addresses."""
        found = [
            RayNode(one["NodeID"], one["NodeManagerAddress"], int(one["Resources"].get("CPU", 0)))
            for one in self.ray.nodes()
            if one["Alive"]
        ]
        return sorted((one for one in found if one.processors), key=lambda one: (one.address, one.id))


@contextlib.contextmanager
def connect(address: str) -> Iterator[RayCluster]:
    """Connect to a cluster that this machine is part of.

    Args:
        address: ``HOST:PORT`` of its head.

    Raises:
        InvalidError: that is no such address, or this process is connected to another cluster.
        StartError: Ray is not installed, or is another version than the cluster's.
        UnavailableError: it does not answer.
    """
    host, port = _parse(address)
    if importlib.util.find_spec("ray") is None:
        raise StartError("ray: is not installed here: pip install 'propeller[ray]'")
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        raise UnavailableError(
            f"ray: nothing answers at {address} ({error.strerror or error}): start a cluster there with `ray start --head --port {port}`, "
            "or give the address of one that runs"
        ) from None
    import ray  # a second's worth of modules

    if ray.is_initialized():  # a notebook that uses it for something else too
        if not _is_head(ray.get_runtime_context().gcs_address, host, port):
            raise InvalidError(
                f"ray: this process is connected to another cluster than {address}: ray.shutdown() first"
            )
        yield RayCluster(ray, address)
        return
    probe(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tips about settings of older versions
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        yield RayCluster(ray, address)
    finally:
        ray.shutdown()


def _is_head(address: str, host: str, port: int) -> bool:
    """Whether Ray's address of a head is a host's; Ray puts the machine's own in the place of loopback."""
    head, _colon, its_port = address.rpartition(":")
    try:
        found = socket.gethostbyname(host)
    except OSError:
        found = host
    return int(its_port) == port and (head in {host, found} or found.startswith("127."))


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise InvalidError(
            f"ray: {address!r:.80} is for Ray's client: run this on a machine of the cluster, and give HOST:PORT of its head, as 10.0.0.1:6379"
        )
    if (
        not colon
        or not host
        or "/" in host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise InvalidError(
            f"ray: {address!r:.80} is no address: give HOST:PORT of the cluster's head, as 10.0.0.1:6379"
        )
    return host.strip("[]"), int(port)


def probe(address: str) -> None:
    """Connect in another process first: Ray may take minutes to give up, or end the process in which it does.

    Raises:
        StartError, UnavailableError: as ``connect``.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own text
            [sys.executable, "-P", "-c", _PROBE, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            f"ray: what listens at {address} does not answer as the head of a Ray cluster within {_PROBE_S:g} s: give its HOST:PORT, "
            "which `ray start --head` prints"
        ) from None
    if done.returncode == 0:
        return
    said = done.stderr.decode(errors="replace")
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said)
    if "ersion mismatch" in said and len(found) == 2:
        (theirs, python), (mine, my_python) = found
        raise StartError(
            f"ray: the cluster at {address} has Ray {theirs} with Python {python}, and here is Ray {mine} with Python {my_python}: "
            f"install the same here (pip install ray=={theirs})"
        )
    reason = said.partition("refused: ")[2] or f"Ray ended with status {done.returncode}"
    raise UnavailableError(
        f"ray: the cluster at {address} cannot be used: {' '.join(reason.split())[:400]}; is this machine part of it "
        f"(`ray start --address {address}`)?"
    )
