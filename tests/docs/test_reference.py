"""docs/reference.md against the code: a variable, default, route, command, topic or limit that is not in it fails here."""

import fnmatch
import inspect
import pkgutil
import re
from collections.abc import Container, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, cast
from unittest.mock import MagicMock

import pytest
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from starlette.routing import Route
from typer.main import get_command

from propeller.cli.app import app as cli
from propeller.oci.layout import Layout
from propeller.oci_registry.api import create_api
from propeller.process.settings import HttpSettings
from propeller.protocol.experiments import (
    DataPlan,
    EvaluationPlan,
    ExperimentSpec,
    Mode,
    Selection,
    StopRule,
    UpdateForm,
)
from propeller.protocol.rounds import RoundStart
from propeller.protocol.selection import SelectionPolicy
from propeller.protocol.topics import EVERYONE, PROPLET_SAYS, UPDATES_FILTER, Channel, Kind
from propeller.stack.service_spec import ServiceSpec
from propeller.stack.services import SERVICES
from propeller.wasm.program_run import Limits
from support.stack_config import make_stack_config

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

SHARED = {str(field.alias) for field in HttpSettings.model_fields.values()}
BESIDE_SETTINGS = {"PROPLET_CONFIG_FILE", "PROPLET_CONFIG_SECTION"}
"""Read from the environment before the settings are."""

COMPUTED = {
    f"PROPLET_MAX_{name}" for name in ("TASKS", "MEMORY", "DISK", "THREADS", "DESCRIPTORS", "PROCESSORS")
}
"""Their defaults depend on the machine, or on other settings."""


OF_ALL_PROCESSES = {"DOCKER_CONFIG", "PROPELLER_CA_CERT", "PROPELLER_LOG_MAX_BYTES"}
"""Read by what the services use, and no settings of theirs."""

NOT_DESCRIBED = {"proxy", "oci-registry"}
"""The proxy has no routes of its own; the registry's are Starlette's, without a description."""


class _Api(Protocol):
    def openapi(self) -> dict[str, Any]: ...


def section(heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{2,{level}}} |\Z)", REFERENCE, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"docs/reference.md has no heading {heading!r}"
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def spans(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", text))


def variables(text: str) -> dict[tuple[str, ...], str]:
    """Names to default, of every row that begins with the name of a variable."""
    found = {}
    for cells in rows(text):
        names = tuple(re.findall(r"`([A-Z][A-Z0-9_]+)`", cells[0]))
        if names:
            found[names] = cells[1]
    return found


def names_of(field: FieldInfo) -> tuple[str, ...]:
    if isinstance(field.validation_alias, AliasChoices):
        return tuple(str(choice) for choice in field.validation_alias.choices)
    assert field.alias is not None
    return (field.alias,)


def shown(field: FieldInfo) -> str:
    """A default as the tables write it."""
    value = field.default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "":
        return "–"  # noqa: RUF001 - the dash of the tables
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


@pytest.mark.parametrize("service", SERVICES, ids=lambda spec: spec.name)
def test_variables_and_their_defaults_are_those_of_the_settings(service: ServiceSpec) -> None:
    settings = service.load_settings_class()
    expected = {names_of(field): shown(field) for field in settings.model_fields.values()}
    if issubclass(settings, HttpSettings):
        expected = {names: default for names, default in expected.items() if not SHARED & set(names)}
    found = {
        names: default
        for names, default in variables(section(f"### {service.name}")).items()
        if not BESIDE_SETTINGS & set(names)
    }
    assert set(found) == set(expected)
    assert {names: found[names] for names in found if not COMPUTED & set(names)} == {
        names: expected[names] for names in expected if not COMPUTED & set(names)
    }


def test_shared_variables_and_their_defaults() -> None:
    expected = {names_of(field): shown(field) for field in HttpSettings.model_fields.values()}
    assert variables(section("## Settings")) == expected


def api(service: ServiceSpec) -> _Api:
    """A service's app over nothing: only its routes are looked at."""
    create_api = pkgutil.resolve_name(f"{service.settings.partition('.settings:')[0]}.api:create_api")
    required = [
        each for each in inspect.signature(create_api).parameters.values() if each.default is each.empty
    ]
    nothing = {each.name: 1 if each.annotation is int else MagicMock() for each in required}
    return cast(_Api, create_api(**nothing))


def test_what_up_passes_on_to_its_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_stack_config(tmp_path)
    names = {
        spec.name: {
            name for field in spec.load_settings_class().model_fields.values() for name in names_of(field)
        }
        for spec in SERVICES
    }
    known = set[str]().union(*names.values())
    for name in known:  # each as its own value: what arrives was passed on
        monkeypatch.setenv(name, name)
    told = {
        spec.name: spec.environment_in(config, "proplet-1" if spec.is_device else "") for spec in SERVICES
    }
    passed = {name for one in told.values() for name, value in one.items() if name == value.strip(",")}
    chosen = {name for one in told.values() for name in one} - passed
    table = section("### Of all commands").partition("`propeller up` takes")[2]
    patterns = {span for cells in rows(table) for span in spans(cells[0]) if span.isupper()}
    matched = {pattern: set(fnmatch.filter(known, pattern)) for pattern in patterns}
    assert {pattern for pattern, found in matched.items() if not found} == OF_ALL_PROCESSES
    documented = set[str]().union(*matched.values())
    assert sorted(passed - documented) == []
    assert sorted(documented - passed - chosen) == []


def documented_routes(text: str) -> set[str]:
    return {span for span in spans(text) if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S*", span)}


@pytest.mark.parametrize(
    "service",
    [spec for spec in SERVICES if spec.has_http and spec.name not in NOT_DESCRIBED],
    ids=lambda spec: spec.name,
)
def test_routes_are_those_of_the_api(service: ServiceSpec) -> None:
    expected = {
        f"{method.upper()} {path}"
        for path, methods in api(service).openapi()["paths"].items()
        for method in methods
    }
    cells = "\n".join(row[0] for row in rows(section(f"### {service.name}")))
    assert documented_routes(cells) == expected


def test_routes_of_the_oci_registry(tmp_path: Path) -> None:
    app = create_api(Layout(tmp_path))
    expected = {
        f"{method} {route.path.replace(':path', '').rstrip('/')}"
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith("/v2")
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {route.rstrip("/") for route in documented_routes(section("### oci-registry"))} == expected


def documented_command(span: str, commands: Container[str]) -> str:
    """The command that is written there, which may be one of a group, as ``experiment show``."""
    words = span.split()[1:3]
    return " ".join(words) if " ".join(words) in commands else words[0]


def test_every_command_with_its_options() -> None:
    commands: dict[str, Any] = {}
    for name, command in cast(Any, get_command(cli)).commands.items():
        of_group = getattr(command, "commands", None)
        commands |= (
            {f"{name} {one}": inner for one, inner in of_group.items()} if of_group else {name: command}
        )
    table = {
        documented_command(span, commands): cells
        for cells in rows(section("## Commands"))
        for span in spans(cells[0])
        if span.startswith("propeller ")
    }
    assert set(table) == set(commands)
    for name, command in commands.items():
        cells = table[name] + (table["push"] if name == "pull" else [])
        text = " ".join(cells) + (section("### Which stack") if "#which-stack" in cells[-1] else "")
        written = set(re.findall(r"(?<![\w-])--?[a-z-]+", text))
        for option in command.params:
            if option.param_type_name == "option":
                assert written & set(option.opts), f"propeller {name} {option.opts}"


def test_every_topic() -> None:
    update = UPDATES_FILTER.replace("+", "{round}", 1).replace("+", "{proplet}")
    topics = {span for cells in rows(section("## MQTT")) for span in spans(cells[0])}
    channel = Channel("d", "c")
    own = [channel.said(kind, EVERYONE) for kind in (*PROPLET_SAYS, Kind.REGISTRY_REQUEST)]
    named = {topic.removeprefix(f"{channel.prefix}/").replace("+", "{proplet}") for topic in own}
    named |= {update, f"{Kind.REGISTRY_ANSWER}/{{proplet}}"}
    shared = {str(kind) for kind in Kind if kind not in {Kind.UPDATE, Kind.REGISTRY_ANSWER}}
    assert shared | named <= topics


def test_every_field_of_an_experiment() -> None:
    text = section("#### Experiments").partition("\nA summary:")[0]
    table = {cells[0].strip("`"): spans(" ".join(cells[1:])) for cells in rows(text)}
    assert set(ExperimentSpec.model_fields) <= set(table)
    for field, part in (
        ("selection", Selection),
        ("evaluate", EvaluationPlan),
        ("stop", StopRule),
        ("mode", Mode),
        ("update", UpdateForm),
        ("data", DataPlan),
    ):
        assert set(part.model_fields) <= table[field], field


def test_every_field_of_the_message_that_starts_a_round() -> None:
    table = [
        spans(" ".join(cells[1:])) for cells in rows(section("## MQTT")) if "fl/rounds/start" in cells[0]
    ]
    told = set(RoundStart.model_fields) - {"merged", "bounds"}  # are never sent
    assert told | set(SelectionPolicy.model_fields) <= set[str]().union(*table)


def test_every_limit_of_a_task() -> None:
    assert {field.name for field in fields(Limits)} <= spans(section("### proplet"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: there is no {file.relative_to(ROOT)}"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
