"""Someone who follows a page of documentation, command by command, in a folder of their own.

Only two things differ from what a person does: ports of the guide stand for those that were free, and ``propeller up`` runs in the
background.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from propeller.stack.ports import GUIDE_PORTS
from support.net import wait_until
from support.page import Command, Shell, matches
from support.stack import PROPELLER, Up, end

_UP = re.compile(r"(\.venv/bin/)?propeller up\b")


class Reader:
    """Someone who follows a page."""

    def __init__(self, page: str, folder: Path, environment: Mapping[str, str]) -> None:
        """``page`` is named where a command does not do what it says; ``environment`` is added to what everybody has."""
        self.page, self.folder = page, folder
        self.up: Up | None = None
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            **{name: os.environ[name] for name in ("PYTHONPATH", "TMPDIR") if name in os.environ},
            **environment,
        }
        self._shell = Shell(folder, self._environment)

    def follow(self, command: Command) -> None:
        """Run a command of the page and look at what it shows."""
        where = f"{self.page}:{command.line}: {command.text}"
        if _UP.match(command.text):
            shown, failed = self._start(command.text), ""
        else:
            shown, failed = self._shell.run(self.to_own_ports(command.text))
        shown = self._to_guide_ports(shown)
        assert not failed, f"{where}\n{shown}\n{failed}"
        if command.expected is not None:
            assert matches(shown, command.expected), (
                f"{where}\n{shown}\n--- is not as shown:\n{command.expected}"
            )

    def _start(self, command: str) -> str:
        """``propeller up`` in a terminal of its own; gives what it shows until it is ready."""
        output = self.folder / "up.out"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [*PROPELLER, *command.split()[1:], "--ports", "auto"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.up = Up(self.folder / ".propeller", process, output)
        self.up.wait_ready()
        up = self.up
        wait_until(
            lambda: "Ready" in up.output or process.poll() is not None, what="up says that it is ready"
        )
        return up.output

    def close(self) -> None:
        """End the shell and the stack."""
        self._shell.close()
        if self.up is not None:
            end(self.up)

    def to_own_ports(self, text: str) -> str:
        """A text of the page with the ports of the stack."""
        ports = self._ports()
        return _ports_replaced(text, lambda port: ports.get(port, port))

    def _to_guide_ports(self, text: str) -> str:
        guide = {own: port for port, own in self._ports().items()}
        return _ports_replaced(text, lambda port: guide.get(port, port))

    def _ports(self) -> dict[int, int]:
        """The guide's ports and those of the stack."""
        if self.up is None:
            return {}
        services = dict(self.up.stack["services"])
        identity = services.pop("identity")
        urls = {name.replace("_", "-"): service["url"] for name, service in services.items()}
        urls |= {f"identity-{name}": identity[name] for name in ("users", "domains", "channels", "clients")}
        ports = {GUIDE_PORTS[name]: int(url.rpartition(":")[2]) for name, url in urls.items()}
        return {**ports, GUIDE_PORTS["broker"]: int(self.up.stack["broker"]["port"])}


def _ports_replaced(text: str, other: Callable[[int], int]) -> str:
    pattern = r"(?P<before>(?:localhost|127\.0\.0\.1):|-p )(?P<port>\d{4,5})\b"
    return re.sub(pattern, lambda found: f"{found['before']}{other(int(found['port']))}", text)
