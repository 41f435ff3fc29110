"""The manager's API over TLS, when it is given a certificate."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import httpx
import pytest

from propeller.errors import StartError
from propeller.manager.main import main
from support.certificates import make_certificates
from support.manager import settings_for
from support.net import eventually


async def test_with_a_certificate_it_answers_https_alone(broker_port: int, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    settings = settings_for(broker_port, tmp_path, http_cert=files.cert, http_key=files.key)
    host, stop = f"127.0.0.1:{settings.http_port}", asyncio.Event()
    running = asyncio.create_task(main(settings, stop))
    trusting, distrusting = (ssl.create_default_context(cafile=str(ca)) for ca in (files.ca, files.other_ca))
    try:
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as http:

            async def answers() -> bool:
                with contextlib.suppress(httpx.ConnectError):
                    return (await http.get(f"https://{host}/health")).is_success
                return False

            await eventually(answers)
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"http://{host}/health")
        async with httpx.AsyncClient(verify=distrusting, trust_env=False) as http:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await http.get(f"https://{host}/health")
    finally:
        stop.set()
        await running


async def test_a_certificate_without_its_key_is_an_error(broker_port: int, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    with pytest.raises(
        StartError, match=r"MANAGER_HTTP_SERVER_KEY: not set, but MANAGER_HTTP_SERVER_CERT is"
    ):
        await main(settings_for(broker_port, tmp_path, http_cert=files.cert), asyncio.Event())
    wrong = settings_for(broker_port, tmp_path, http_cert=files.cert, http_key=files.client_key)
    with pytest.raises(StartError, match=r"MANAGER_HTTP_SERVER_KEY: .* is not the key of the certificate"):
        await main(wrong, asyncio.Event())
