"""Runs the services of deploy/compose.yaml without a container engine: each as a process, as its container would start it.

The command, the environment and the health check are those of the files. Replaced is only what a container's own
network and file system would do: ``name:port`` of another service becomes a free port of loopback, a port that a
service listens on becomes that free port, and a volume becomes a folder.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from propeller.stack.env_file import EnvFile
from support.command_server import Command
from support.compose_file import Container, containers, image
from support.net import free_port, wait_until

_BIN = Path(sys.executable).parent
_NAME_AND_PORT = re.compile(r"(?<![\w.-])([a-z][a-z0-9-]*|127\.0\.0\.1):(\d{2,5})(?!\w)")


class Engine:
    """Starts, recreates and stops the services, as ``docker compose --env-file FILE`` with ``up`` and ``stop``."""

    def __init__(self, env_file: Path, folder: Path) -> None:
        """``folder`` is for volumes and logs."""
        self.env_file, self._folder = env_file, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ports: dict[tuple[str, int], int] = {}
        self._names: dict[str, str] = {}
        self._running: dict[str, tuple[Container, Command]] = {}
        self.created: list[str] = []
        """The services in the order in which they were created, each time anew."""

    def up(self, *names: str, force: bool = False) -> None:
        """Create what is named (or everything) and what that needs; what runs as it should is left alone.

        ``force`` creates what is named anew; what it needs only if its settings have changed, as docker compose does.
        """
        chosen = containers(EnvFile.read(self.env_file).values)
        for container in chosen.values():
            self._names |= dict.fromkeys([container.name, *container.aliases], container.name)
            for port in container.ports:
                if (container.name, port) not in self._ports:
                    self._ports[container.name, port] = free_port()
        settled: set[str] = set()
        # What needs nothing first: it starts side by side.
        for name in sorted(names or chosen, key=lambda name: bool(chosen[name].needs)):
            self._create(name, chosen, set(names) if force else set(), settled)

    def _create(
        self, name: str, chosen: Mapping[str, Container], forced: set[str], settled: set[str]
    ) -> None:
        if name in settled:
            return
        settled.add(name)
        container = chosen[name]
        for other, condition in container.needs.items():
            self._create(other, chosen, forced, settled)
            if condition == "service_healthy":
                self.wait_healthy(other)
        known = self._running.get(name)
        if known and known[0] == container and name not in forced and known[1].poll() is None:
            return
        if known:
            self.stop(name)
        self.created.append(name)
        program, *arguments = self._here(container, [*image().entrypoint, *container.command])
        assert program == "propeller"
        with self._log(name).open("wb") as log:
            process = Command(
                arguments,
                self._environment(container),
                stdout=log,
                stderr=log,
                folder=self._workplace(container),
            )
        self._running[name] = (container, process)

    def healthy(self, name: str) -> bool:
        """Whether the health check's command says so."""
        container, process = self._running[name]
        if process.poll() is not None:
            return False
        return self.execute(name, *container.health).returncode == 0

    def wait_healthy(self, *names: str, timeout: float = 40.0) -> None:
        """Block until services are healthy."""
        for name in names:
            process = self._running[name][1]
            try:
                wait_until(lambda: self.healthy(name) or process.poll() is not None, timeout)  # noqa: B023 - called here
                assert process.poll() is None
            except AssertionError:
                raise AssertionError(f"{name} does not become healthy:\n{self.logs(name)}") from None

    def execute(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a container, as ``docker compose exec`` does."""
        container = self._running[name][0]
        return subprocess.run(
            self._here(container, list(command)),
            env=self._environment(container),
            cwd=self._workplace(container),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def exit_code(self, name: str, timeout: float = 20.0) -> int:
        """The exit code of a container that ends by itself."""
        return self._running[name][1].wait(timeout)

    def pause(self, name: str) -> None:
        """Stop a container's process where it is."""
        self._running[name][1].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self._running[name][1].send_signal(signal.SIGCONT)

    def stop(self, *names: str) -> None:
        """Ask containers to end, and kill them after the engine's ten seconds."""
        processes = [self._running.pop(name)[1] for name in names or list(self._running)]
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self, name: str) -> str:
        """What a container has written since it was created."""
        return self._log(name).read_text(errors="replace")

    def address(self, name_and_port: str) -> str:
        """Where ``name:port`` of the containers' network is here."""
        name, _, port = name_and_port.partition(":")
        return f"127.0.0.1:{self._ports[self._names[name], int(port)]}"

    def _environment(self, container: Container) -> dict[str, str]:
        own = {str(port) for port in container.ports}
        here = {
            name: str(self._ports[container.name, int(value)])
            if name.endswith("_PORT") and value in own
            else self._translated(container, value)
            for name, value in container.environment.items()
        }
        return {**image().environment, **here, "PATH": f"{_BIN}:{os.environ['PATH']}"}

    def _here(self, container: Container, words: list[str]) -> list[str]:
        return [self._translated(container, word) for word in words]

    def _translated(self, container: Container, text: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            name = container.name if match[1] == "127.0.0.1" else self._names.get(match[1])
            port = self._ports.get((name or "", int(match[2])))
            assert port, f"{container.name}: {match[0]} in {text!r} is nothing that listens on the network"
            return f"127.0.0.1:{port}"

        text = _NAME_AND_PORT.sub(replaced, text)
        for volume, mount in container.volumes.items():
            text = re.sub(rf"(?<![\w/]){mount}(?![\w-])", str(self._folder / volume), text)
        return text

    def _workplace(self, container: Container) -> Path:
        mounted = {mount: volume for volume, mount in container.volumes.items()}
        folder = self._folder / mounted.get(image().folder, f"{container.name}-scratch")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"
