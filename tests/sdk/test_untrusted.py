"""What whoever does not believe a server's certificate, or speaks plain HTTP to TLS, is told to do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.doctor.services import HttpClient, NoAnswerError
from propeller.errors import UnavailableError
from propeller.oci.client import RegistryClient
from propeller.oci.errors import RegistryUnreachableError
from propeller.oci.reference import Reference
from propeller.process.certificates import Authority
from propeller.process.tls import KeyPair
from propeller.sdk import AsyncPropeller


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """Of a server with a certificate of an authority that nobody knows."""
    authority = Authority(tmp_path / "certs")
    authority.ensure()
    context = KeyPair(*authority.ensure_server("server", ["127.0.0.1"]), "CERT", "KEY").server_context()
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_python_and_commands_say_how_to_name_the_authority(address: str) -> None:
    async with AsyncPropeller(coordinator=f"https://{address}") as fl:
        with pytest.raises(
            UnavailableError, match=r"CERTIFICATE_VERIFY_FAILED.*--ca FILE, PROPELLER_CA_CERT"
        ):
            await fl.experiments()
    async with AsyncPropeller(coordinator=f"http://{address}") as fl:
        with pytest.raises(UnavailableError, match="if it speaks TLS, write https://"):
            await fl.experiments()


async def test_the_doctor_does_not_say_that_nothing_listens(address: str) -> None:
    async with HttpClient(f"https://{address}") as http:
        with pytest.raises(NoAnswerError, match=f"{address} shows a certificate that is not believed"):
            await http.get(f"https://{address}/health")


async def test_a_registry_on_loopback_that_speaks_tls_is_to_be_written_so(address: str) -> None:
    async with RegistryClient(retry_delays=(0.01,)) as registry:
        with pytest.raises(RegistryUnreachableError) as caught:
            await registry.pull(Reference.parse(f"{address}/x"))
    assert f"https://{address}" in caught.value.remedy
