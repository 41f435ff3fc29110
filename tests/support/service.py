"""Services as processes of their own, as their containers run them."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.command_server import Command
from support.net import wait_port


@contextmanager
def start_service(service: str, env: Mapping[str, str], port: int, log: Path) -> Iterator[Command]:
    """Run ``propeller serve SERVICE`` with ``env`` until it listens on ``port``; at the end of the block it is killed."""
    with log.open("ab") as output:
        process = Command(
            ["serve", service], {"PATH": os.environ["PATH"], **env}, stdout=output, stderr=output
        )
    try:
        try:
            wait_port(port, 20)
        except TimeoutError:
            raise AssertionError(f"{service} does not listen:\n{log.read_text()}") from None
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def start_services(services: Mapping[str, tuple[Mapping[str, str], int]], logs: Path) -> Iterator[None]:
    """Run several services, each with its environment and port; they start together and log to ``NAME.log`` in a folder."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        starting = [
            pool.submit(stack.enter_context, start_service(name, env, port, logs / f"{name}.log"))
            for name, (env, port) in services.items()
        ]
        for start in starting:
            start.result()
        yield
