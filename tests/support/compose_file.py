"""deploy/compose.yaml and deploy/Dockerfile as the engine reads them, as far as these files need it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE, DOCKERFILE, EXAMPLE = DEPLOY / "compose.yaml", DEPLOY / "Dockerfile", DEPLOY / ".env.example"

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<rest>[^}]*))?\})")


class MissingVariableError(Exception):
    """A ``${NAME:?text}`` without a value; the text is the file's own."""


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put values in the places of ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?error}``, with and without the colon.

    Raises:
        MissingVariableError: one that must be set is not.
    """

    def replaced(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        name, how, rest = match["name"], match["how"] or "", match["rest"] or ""
        value = values.get(name)
        if value is None or (how.startswith(":") and not value):
            if how.endswith("?"):
                raise MissingVariableError(f"{name}: {rest}")
            return rest if how.endswith("-") else ""
        return value

    return _VARIABLE.sub(replaced, text)


def variables(text: str) -> set[str]:
    """The variables that a text has places for."""
    return {match["name"] for match in _VARIABLE.finditer(text) if match["name"]}


@cache
def document() -> dict[str, Any]:
    """compose.yaml with its anchors merged; variables are still variables."""
    loaded: dict[str, Any] = YAML(typ="safe").load(COMPOSE)
    return loaded


def _filled(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return interpolate(node, values)
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    return [_filled(value, values) for value in node] if isinstance(node, list) else node


@dataclass(frozen=True)
class Container:
    """A service of compose.yaml, its variables filled in.

    Attributes:
        name: of the service.
        command: what follows the image's entry point.
        environment: what its process is given, beside what the image sets.
        ports: those that it listens on, in the container.
        aliases: other names on the network.
        volumes: volume → where it is mounted.
        needs: service → the condition under which this one is started after it.
        health: the health check's command.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    ports: list[int]
    aliases: list[str]
    volumes: dict[str, str]
    needs: dict[str, str]
    health: list[str] = field(default_factory=list)


def containers(values: Mapping[str, str]) -> dict[str, Container]:
    """Every service with the variables of an ``.env`` file.

    Raises:
        MissingVariableError: one that must be set is not.
    """
    filled = _filled(document()["services"], values)
    return {name: _container(name, service) for name, service in filled.items()}


def _container(name: str, service: Mapping[str, Any]) -> Container:
    published = [int(port.rsplit(":", 1)[1]) for port in service.get("ports", [])]
    networks = service.get("networks", {})
    check = service["healthcheck"]["test"]
    assert check[0] == "CMD"
    return Container(
        name,
        list(service["command"]),
        dict(service["environment"]),
        published + [int(port) for port in service.get("expose", [])],
        [alias for network in networks.values() for alias in network.get("aliases", [])],
        dict(volume.split(":", 1) for volume in service.get("volumes", [])),
        {other: need["condition"] for other, need in service.get("depends_on", {}).items()},
        check[1:],
    )


@dataclass(frozen=True)
class Image:
    """What the last stage of the Dockerfile says of every container: entry point, environment, working folder."""

    entrypoint: list[str]
    environment: dict[str, str]
    folder: str


@cache
def image() -> Image:
    """Read the Dockerfile."""
    stage = DOCKERFILE.read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    instructions = [line.split(None, 1) for line in stage.splitlines() if line and line[0] not in "# "]
    found = {name: rest for name, *others in instructions for rest in others}
    pairs = dict(pair.split("=", 1) for pair in found["ENV"].split())
    pairs.pop("PATH")  # that of this machine's installation takes its place
    return Image(json.loads(found["ENTRYPOINT"]), pairs, found["WORKDIR"])
