"""``propeller strategies``: which strategies the coordinator has, and their parameters."""

import json
from collections.abc import Mapping
from typing import Any

from propeller.cli.connection import Target
from propeller.cli.tables import Column, print_fields, print_rows
from propeller.cli.terminal import Terminal

_LIST_COLUMNS = (Column("strategy"), Column("mode"), Column("parameters", spare=2), Column("what", spare=1))
_PARAMETER_COLUMNS = (
    Column("parameter"),
    Column("default"),
    Column("range", spare=2),
    Column("type", spare=3),
    Column("what", spare=1),
)


def show_strategies(target: Target, name: str | None, *, as_json: bool) -> None:
    """Print all strategies, or one with its parameters."""
    with target.connect() as fl:
        found: Any = fl.strategies() if name is None else fl.strategy(name)
    if as_json:
        print(json.dumps(found))
    elif name is None:
        print_rows(Terminal(), _LIST_COLUMNS, [_list_row(one) for one in found])
    else:
        _show_strategy(found)


def _list_row(one: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if "error" in one:
        return one["name"], "", "", one["error"]
    parameters = ", ".join(parameter["name"] for parameter in one["parameters"])
    return one["name"], " ".join(one["modes"]), parameters, _plain(one["summary"])


def _show_strategy(one: Mapping[str, Any]) -> None:
    console = Terminal()
    print_fields(
        console,
        {
            "strategy": one["name"],
            "what": _plain(one["summary"]),
            "paper": one["paper"],
            "mode": " or ".join(one["modes"]),
            "devices": "keep something from round to round" if one["needs_device_state"] else "",
        },
    )
    console.print()
    print_rows(console, _PARAMETER_COLUMNS, [_parameter_row(parameter) for parameter in one["parameters"]])


def _parameter_row(one: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    default = "required" if one["required"] else "" if one["default"] is None else json.dumps(one["default"])
    return one["name"], default, one["range"], one["type"].replace("`", ""), one["description"]


def _plain(text: str) -> str:
    """A line of documentation without the marks of code."""
    return text.replace("``", "")
