"""Services as processes of their own, as their containers run them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.net import wait_port


@contextmanager
def start_service(
    service: str, env: Mapping[str, str], port: int, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``propeller serve SERVICE`` with ``env`` until it listens on ``port``; at the end of the block it is killed."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "propeller", "serve", service],
            env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
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
