"""``propeller status``: what runs, who is there, what has been learned."""

import json
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from propeller.cli.connection import Target
from propeller.cli.experiments import print_experiments, print_reasons, print_stages
from propeller.cli.tables import Column, print_rows
from propeller.cli.terminal import Terminal
from propeller.errors import PropellerError
from propeller.fl.selection import natural_order
from propeller.process.http import verify_for
from propeller.sdk import Propeller
from propeller.stack.standby import foreign_owners
from propeller.stack.state_folder import StateFolder

CHECK_S = 3.0
"""How long a service may take to answer, in seconds."""

_EXPERIMENTS = 5
_ROUNDS = 10
"""How many of the newest are shown."""


def show_status(target: Target, *, as_json: bool = False) -> int:
    """Print the state of a stack; returns 0 if every service answers, 1 if not or none runs."""
    console, folder = Terminal(), target.state
    if target.is_remote:
        return _show_remote(console, target, as_json=as_json)
    state = StateFolder(folder)
    if as_json:
        document = _document(state)
        print(json.dumps(document))
        return 0 if "proplets" in document else 1
    process = state.running_process()
    if process is None:
        console.print(
            f"No stack runs on {folder.absolute()}. Start one: propeller up --state {folder}", soft_wrap=True
        )
        return 1
    if state.read_stack() is None:
        console.print(f"A stack is starting on {folder.absolute()} (process {process}).", soft_wrap=True)
        _show_standbys(console, state, process)
        return 1
    with Propeller.from_state(folder) as fl:
        if not _show_services(console, fl.stack):
            _show_standbys(console, state, process)
            console.print(f"A service does not answer; see: propeller logs --state {folder}", soft_wrap=True)
            return 1
        _show_fleet(console, fl)
    return 0


def _show_remote(console: Console, target: Target, *, as_json: bool) -> int:
    """As ``show_status``, of a stack elsewhere: what its services say."""
    with target.connect() as fl:
        checked = [
            (name.replace("_", "-"), fl.url(name), answers) for name, answers in fl.answering().items()
        ]
        answer = all(answers for _name, _url, answers in checked)
        if as_json:
            services = [dict(zip(("name", "address", "answers"), one, strict=True)) for one in checked]
            told = _told_of_fleet(fl) if answer else {}
            print(json.dumps({"state": "running", "services": services, **told}))
        else:
            _print_services(console, checked)
            if answer:
                _show_fleet(console, fl)
    return 0 if answer else 1


def _show_fleet(console: Console, fl: Propeller) -> None:
    _show_proplets(console, fl)
    _show_duplicates(console, fl)
    if experiments := fl.experiments(limit=_EXPERIMENTS):
        console.print("\n[bold]Experiments[/], newest first")
        print_experiments(console, experiments)
    _show_rounds(console, fl)
    versions = fl.versions()
    console.print(f"\nModel versions: {', '.join(map(str, versions[-20:]))}", soft_wrap=True)


def _document(state: StateFolder) -> dict[str, Any]:
    """What is known of a stack, with names that do not change; without its proplets and what follows if a service does not answer."""
    if state.running_process() is None:
        return {"state": "absent"}
    if state.read_stack() is None:
        return {"state": "starting"}
    with Propeller.from_state(state.folder) as fl:
        services = [
            {"name": name, "address": address, "answers": answers}
            for name, address, answers in _check_services(fl.stack)
        ]
        document: dict[str, Any] = {"state": "running", "services": services}
        if all(one["answers"] for one in services):
            document |= _told_of_fleet(fl)
    return document


def _told_of_fleet(fl: Propeller) -> dict[str, Any]:
    names = fl.device_names()
    proplets = [{**one, "name": names[one["id"]]} for one in fl.proplets() if one["id"] in names]
    return {
        "proplets": sorted(proplets, key=lambda one: (natural_order(one["name"]), one["id"])),
        "duplicates": _duplicates(fl),
        "experiments": fl.experiments(limit=_EXPERIMENTS),
        "rounds": fl.rounds(limit=_ROUNDS),
        "versions": fl.versions(),
    }


def _show_standbys(console: Console, state: StateFolder, process: int) -> None:
    """Show which services wait for another process that owns their database."""
    for name, text in foreign_owners(state.folder, process).items():
        console.print(f"{name}: {escape(text)}", soft_wrap=True)


def _show_services(console: Console, stack: dict[str, Any]) -> bool:
    """Show each service and whether it answers; returns whether all of them do."""
    checked = _check_services(stack)
    _print_services(console, checked)
    return all(answers for _name, _address, answers in checked)


def _print_services(console: Console, checked: Sequence[tuple[str, str, bool]]) -> None:
    rows = [(name, address, "yes" if answers else "NO") for name, address, answers in checked]
    console.print("[bold]Services[/]")
    print_rows(console, (Column("service"), Column("address", spare=1), Column("answers")), rows)


def _check_services(stack: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Each service, its address, and whether it answers."""
    broker, ca = stack["broker"], stack.get("ca")
    urls = [service["url"] for service in stack["services"].values()]
    verify = verify_for(*urls, ca_cert=Path(ca) if ca else None)
    checks: dict[str, tuple[str, Callable[[], bool]]] = {
        name.replace("_", "-"): (service["url"], partial(_answers, service["url"], verify))
        for name, service in stack["services"].items()
    }
    checks["broker"] = (
        f"{broker['host']}:{broker['port']}",
        partial(_accepts_connections, broker["host"], broker["port"]),
    )
    with ThreadPoolExecutor(len(checks)) as threads:
        answers = list(threads.map(lambda check: check[1](), checks.values()))
    return [
        (name, address, answer)
        for (name, (address, _check)), answer in zip(checks.items(), answers, strict=True)
    ]


def _answers(url: str, verify: ssl.SSLContext | bool) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=CHECK_S, trust_env=False, verify=verify).is_success
    except httpx.TransportError:
        return False


def _accepts_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CHECK_S).close()
    except OSError:
        return False
    return True


def _show_proplets(console: Console, fl: Propeller) -> None:
    names = fl.device_names()
    rows = [
        (
            names.get(proplet["id"], proplet["name"]),
            proplet["id"],
            _presence(proplet),
            str(proplet["task_count"]),
            ", ".join(proplet["metadata"].get("tags") or ()),
        )
        for proplet in fl.proplets()
    ]
    columns = (
        Column("name"),
        Column("client id", spare=2),
        Column("alive"),
        Column("tasks", right=True),
        Column("tags", spare=1),
    )
    console.print("\n[bold]Proplets[/]")
    print_rows(console, columns, sorted(rows, key=lambda row: (natural_order(row[0]), row[1])))


def _show_duplicates(console: Console, fl: Propeller) -> None:
    if duplicates := _duplicates(fl):
        names = fl.device_names()
        console.print(
            f"[yellow]Two processes are connected as {escape(', '.join(names.get(one, one) for one in duplicates))}[/], and "
            "each ends the other's connection: end one of them, or give it a client of its own (propeller device add NAME)",
            soft_wrap=True,
        )


def _duplicates(fl: Propeller) -> list[str]:
    """The ids as which two processes are connected; none if identity does not tell: its first user's password may be another by now."""
    try:
        return fl.devices.duplicates()
    except PropellerError:
        return []


def _presence(proplet: dict[str, Any]) -> str:
    if not proplet["alive"]:
        return "NO"
    return "resting" if proplet["metadata"].get("resting") else "yes"


def _show_rounds(console: Console, fl: Propeller) -> None:
    rounds = fl.rounds(limit=_ROUNDS)
    if not rounds:
        return
    names = fl.device_names()
    rows = [
        (
            detail["round_id"],
            detail["state"],
            f"{detail['num_updates']}/{detail['k_of_n'] or '?'}",
            "" if detail.get("model_version") is None else f"v{detail['model_version']}",
        )
        for detail in rounds
    ]
    columns = (Column("round"), Column("state"), Column("updates", right=True), Column("model", spare=1))
    console.print("\n[bold]Rounds[/], newest first")
    print_rows(console, columns, rows)
    print_reasons(console, ((detail["round_id"], detail.get("reason")) for detail in rounds))
    for summary in rounds:
        if summary["state"] == "collecting":
            print_stages(console, fl.round(summary["round_id"]), names)
