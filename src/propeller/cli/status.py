"""``propeller status``: what runs, who is there, what has been learned."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from propeller.sdk import Propeller
from propeller.stack.state import State

_SHOWN = {True: "yes", False: "NO", None: "-"}


def show_status(folder: Path) -> int:
    """Print the state of the stack on a folder; returns 0 if every service answers, 1 if not or none runs."""
    console = Console(highlight=False)
    state = State(folder)
    holder = state.holder()
    if holder is None:
        console.print(f"No stack runs on {folder.absolute()}. Start one: propeller up --state {folder}")
        return 1
    if state.read_stack() is None:
        console.print(f"A stack is starting on {folder.absolute()} (process {holder}).")
        return 1
    with Propeller.from_state(folder) as fl:
        healthy = fl.health()
        console.print(_services(fl.stack, healthy))
        if not all(healthy.values()):
            console.print(f"A service does not answer; see propeller logs --state {folder}")
            return 1
        console.print(_proplets(fl))
        console.print(_rounds(fl))
        versions = fl.versions()
        console.print(f"Model versions: {', '.join(map(str, versions[-20:]))}")
    return 0


def _services(stack: dict[str, Any], healthy: dict[str, bool]) -> Table:
    table = Table(title="Services", title_justify="left")
    for column in ("service", "address", "answers"):
        table.add_column(column)
    answers = {
        "manager": healthy["manager"],
        "coordinator": healthy["coordinator"],
        "model_registry": healthy["registry"],
        "data_store": healthy["data"],
    }
    for name, service in stack["services"].items():
        table.add_row(name, service["url"], _SHOWN[answers.get(name)])
    broker = stack["broker"]
    table.add_row("broker", f"{broker['host']}:{broker['port']}", "-")
    return table


def _proplets(fl: Propeller) -> Table:
    names = {client["id"]: name for name, client in fl.stack["clients"].items()}
    table = Table(title="Proplets", title_justify="left")
    for column in ("name", "client id", "alive", "tasks"):
        table.add_column(column)
    for proplet in fl.proplets():
        table.add_row(
            names.get(proplet["id"], proplet["name"]),
            proplet["id"],
            "yes" if proplet["alive"] else "NO",
            str(proplet["task_count"]),
        )
    return table


def _rounds(fl: Propeller) -> Table:
    table = Table(title="Rounds, newest first", title_justify="left")
    for column in ("round", "state", "updates", "model", "reason"):
        table.add_column(column)
    for detail in fl.rounds(limit=10):
        version = detail.get("model_version")
        table.add_row(
            detail["round_id"],
            detail["state"],
            f"{detail['num_updates']}/{detail['k_of_n']}",
            "" if version is None else f"v{version}",
            detail.get("reason") or "",
        )
    return table
