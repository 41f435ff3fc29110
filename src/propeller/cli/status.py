"""``propeller status``: what runs, who is there, what has been learned."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from propeller.sdk import Propeller
from propeller.stack.state_folder import StateFolder

CHECK_S = 3.0
"""How long a service may take to answer, in seconds."""


def show_status(folder: Path) -> int:
    """Print the state of the stack on a folder; returns 0 if every service answers, 1 if not or none runs."""
    console = Console(highlight=False)
    state = StateFolder(folder)
    process = state.running_process()
    if process is None:
        console.print(
            f"No stack runs on {folder.absolute()}. Start one: propeller up --state {folder}", soft_wrap=True
        )
        return 1
    if state.read_stack() is None:
        console.print(f"A stack is starting on {folder.absolute()} (process {process}).")
        return 1
    with Propeller.from_state(folder) as fl:
        services, healthy = _services(fl.stack)
        console.print(services)
        if not healthy:
            console.print(f"A service does not answer; see: propeller logs --state {folder}", soft_wrap=True)
            return 1
        console.print(_proplets(fl))
        console.print(_rounds(fl))
        versions = fl.versions()
        console.print(f"Model versions: {', '.join(map(str, versions[-20:]))}", soft_wrap=True)
    return 0


def _services(stack: dict[str, Any]) -> tuple[Table, bool]:
    """Each service and whether it answers, and whether all of them do."""
    broker = stack["broker"]
    checks: dict[str, tuple[str, Callable[[], bool]]] = {
        name: (service["url"], partial(_answers, service["url"]))
        for name, service in stack["services"].items()
    }
    checks["broker"] = (
        f"{broker['host']}:{broker['port']}",
        partial(_accepts_connections, broker["host"], broker["port"]),
    )
    with ThreadPoolExecutor(len(checks)) as threads:
        answers = list(threads.map(lambda check: check[1](), checks.values()))
    table = Table(title="Services", title_justify="left")
    for column in ("service", "address", "answers"):
        table.add_column(column)
    for (name, (address, _check)), answer in zip(checks.items(), answers, strict=True):
        table.add_row(name, address, "yes" if answer else "NO")
    return table, all(answers)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=CHECK_S, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _accepts_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CHECK_S).close()
    except OSError:
        return False
    return True


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
            f"{detail['num_updates']}/{detail['k_of_n'] or '?'}",
            "" if version is None else f"v{version}",
            detail.get("reason") or "",
        )
    return table
