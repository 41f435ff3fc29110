"""The proplets that the manager knows and their data; the first model, and how the newest round ended."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from propeller.doctor.checks import Finding, failed, passed, skipped, waits_for
from propeller.doctor.services import Asks, NoAnswerError
from propeller.doctor.target import Client, Observations, Target
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.stack.env_file import shown_id

_INSTANCE_NAME = re.compile(r"proplet(-[0-9]+)?")
_PAGE = 1000
_MAX_REQUESTS = 10


_REMEDIES = (
    ("cannot be fetched", "see 'image'; name the program of that round with --image {image}"),
    ("aggregation:", "see 'aggregator' and 'model-registry'; then {again}"),
    ("wall_time_s", "give tasks more time: PROPLET_TASK_WALL_TIME"),
    ("memory_bytes", "give tasks more memory: PROPLET_TASK_MEMORY"),
    ("not alive", "see 'proplets'"),
    (
        "still compiling the program",
        "compiling goes on and is done once: start the round again, or give it more timeout_s",
    ),
    ("deadline: 0 of", "no update came: see 'image' and 'proplets', or give the round more timeout_s"),
    ("deadline:", "see 'proplets', lower k_of_n, or give the round more timeout_s"),
)
"""Part of a round's reason → what to do; the first that fits."""

_OWN_DATA = "this device's own data (PROPLET_DATA) cannot be read"
"""In the reason of a device that cannot read its own: the stack is told no more."""


class FleetChecks:
    """Asks the manager and the data store."""

    def __init__(
        self, target: Target, http: Asks, observed: Observations, participants: Sequence[str] | None
    ) -> None:
        """``participants`` are those to examine; else the newest round's, if that did not complete."""
        self._target, self._http, self._observed, self._chosen = target, http, observed, participants

    async def connection(self) -> list[Finding]:
        """Whether the manager is connected to the broker."""
        if any(one.name == "manager" and self._observed.is_shut_out(one) for one in self._target.clients):
            return [waits_for("manager mqtt", "keys", "channel")]
        url = self._target.services["manager"]
        health = await self._http.get_object(f"{url}/health")
        if health.get("mqtt_connected", True):
            return [passed("manager mqtt", "the manager is connected to the broker")]
        detail = (
            "the manager is not connected to the broker: its id, key, domain or channel may be out of date"
        )
        return [failed("manager mqtt", detail, self._target.advice.restart("manager"))]

    async def proplets(self) -> list[Finding]:
        """Whether every proplet that should be there is registered and alive."""
        known = self._observed.proplets = await self._known()
        expected = self._target.proplets
        if not expected:
            return [skipped("proplets", "there should be none")]
        absent = [client for client in expected if client.id not in known or not known[client.id]["alive"]]
        findings = [
            self._missing(client, known.get(client.id))
            for client in absent
            if not self._observed.is_shut_out(client)
        ]
        if absent and not findings:
            return [waits_for("proplets", "keys", "channel")]
        return findings or [passed("proplets", presence([(one.name, known[one.id]) for one in expected]))]

    async def duplicates(self) -> list[Finding]:
        """Whether two processes are connected as one client."""
        caller, what = self._target.caller, "client ids"
        url = f"{self._target.identity['users']}/auth/duplicates"
        try:
            answer = await self._http.get_object(url, caller, params={"domain_id": caller.channel.domain_id})
        except NoAnswerError as error:
            return [skipped(what, f"identity does not tell: {error}")]
        owners = [self._target.owner(str(id_)) for id_ in answer.get("clients", ())]
        names = [
            str(id_) if one is None else one.shown
            for id_, one in zip(answer.get("clients", ()), owners, strict=True)
        ]
        if not names:
            return [passed(what, "each is used by one process")]
        detail = f"two processes are connected as {', '.join(names)}, and each ends the other's connection"
        fix = "end one of the two, or give it a client of its own: propeller device add NAME"
        return [failed(what, detail, fix)]

    async def participants(self) -> list[Finding]:
        """Whether those who are asked to take part are client ids of live proplets."""
        chosen, whose = self._chosen, "--participants"
        newest = self._observed.newest_round
        if (
            chosen is None
            and newest is not None
            and newest["state"] != "completed"
            and newest["participants"]
        ):
            chosen, whose = newest["participants"], f"round {newest['round_id']}"
        if chosen is None:
            return [skipped("participants", "no round is open or failed; name some with --participants ID,…")]
        findings = [one for one in (self._participant_problem(name, whose) for name in chosen) if one]
        if findings:
            return findings
        if self._observed.proplets is None:
            return [waits_for("participants", "proplets")]
        return [passed("participants", f"{whose}: {len(chosen)} known proplets")]

    async def datasets(self) -> list[Finding]:
        """Whether each proplet has data to learn from."""
        wanted = {client.id: client.shown for client in self._target.proplets}
        known = self._observed.proplets or {}
        wanted |= {name: name for name in self._chosen or () if name in known and name not in wanted}
        slots = asyncio.Semaphore(_MAX_REQUESTS)

        async def examine(proplet_id: str) -> str | None:
            async with slots:
                return await self._dataset_problem(proplet_id)

        problems = zip(wanted, await asyncio.gather(*map(examine, wanted)), strict=True)
        findings = [
            self._no_data(wanted[proplet], proplet, problem)
            for proplet, problem in problems
            if problem is not None
        ]
        return findings or [passed("datasets", f"{len(wanted)} of {len(wanted)} proplets have data")]

    async def _known(self) -> dict[str, dict[str, Any]]:
        url, who = f"{self._target.services['manager']}/proplets", self._target.caller
        found: dict[str, dict[str, Any]] = {}
        while True:
            params = {"limit": _PAGE, "offset": len(found)}
            page = await self._http.get_object(url, who, params=params)
            found |= {str(proplet["id"]): proplet for proplet in page["proplets"]}
            if not page["proplets"] or len(found) >= page["total"]:
                return found

    def _missing(self, client: Client, proplet: dict[str, Any] | None) -> Finding:
        if proplet is None:
            detail = (
                f"{client.shown} is not registered with the manager: it does not run, or works in another channel, "
                f"or its id is not what {client.id_setting} says"
            )
        else:
            detail = f"{client.shown} is not alive{last_heartbeat(proplet)}"
        return failed("proplets", detail, self._target.advice.restart(client.name))

    def _participant_problem(self, name: str, whose: str) -> Finding | None:
        known = self._observed.proplets
        if known is not None and name in known:
            expected = self._target.owner(name) is not None
            if known[name]["alive"] or expected:  # a dead one that should be there is a finding already
                return None
            fix = "start it, or leave it out; those alive: GET /proplets?status=active at the manager"
            return failed("participants", f"{whose}: {name} is not alive{last_heartbeat(known[name])}", fix)
        client = next((client for client in self._target.proplets if client.name == name), None)
        if client is not None:
            detail = f"{whose}: {name} is an instance name, not a client id"
            return failed("participants", detail, f"use {shown_id(client.id)} ({client.id_setting})")
        if _INSTANCE_NAME.fullmatch(name):
            fix = "use client ids: GET /proplets at the manager lists them"
            return failed("participants", f"{whose}: {name} is an instance name, not a client id", fix)
        if known is None or self._target.owner(name) in self._target.proplets:
            return None
        fix = "use ids that GET /proplets at the manager lists"
        return failed("participants", f"{whose}: the manager knows no proplet {name[:128]!r}", fix)

    async def _dataset_problem(self, proplet_id: str) -> str | None:
        """What is wrong with a dataset, ``None`` if nothing is."""
        who = self._target.owner(proplet_id) or self._target.caller
        try:
            url = f"{self._target.services['data-store']}/datasets/{check_id(proplet_id)}"
            status, body = await self._http.get_start(url, who)
        except (NoAnswerError, InvalidIdError) as error:
            return str(error)
        if status == 403 or body is None:  # another's, which only it may read; or large
            return None
        if status == 404:
            return "has no dataset"
        try:
            document = json.loads(body)
            size = len(document["data"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"has a dataset that cannot be used: the data store answered {status}"
        return None if size else "has an empty dataset"

    def _no_data(self, shown: str, proplet_id: str, problem: str) -> Finding:
        post = f"POST one to {self._target.services['data-store']}/datasets/{shown_id(proplet_id)}"
        return failed(
            "datasets", f"{shown} {problem}", f"{post}, or the demo's: {self._target.advice.seed()}"
        )


def last_heartbeat(proplet: Mapping[str, Any]) -> str:
    """When a proplet was heard last, for a person."""
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(proplet["last_alive_at"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return ": it never sent a heartbeat"
    return f": its last heartbeat was {max(age, 0):.0f} s ago"


class RoundChecks:
    """Asks the model registry and the coordinator."""

    def __init__(self, target: Target, http: Asks, observed: Observations) -> None:
        self._target, self._http, self._observed = target, http, observed

    async def model(self) -> list[Finding]:
        """Whether there is a model to start from."""
        url = self._target.services["model-registry"]
        found = await self._http.get_object(f"{url}/models", self._target.caller)
        if 0 in found["versions"]:
            return [passed("model 0", f"{url}/models/0 is there; versions: {len(found['versions'])}")]
        body = '{"version": 0, "model": {"w": [0.0, 0.0, 0.0], "b": 0.0}}'
        fix = f"curl -X POST {url}/models -H 'Content-Type: application/json' -d '{body}'"
        return [failed("model 0", f"{url} has no model 0 to start from", fix)]

    async def rounds(self) -> list[Finding]:
        """Whether the newest round failed, or waits for something that is away, and why."""
        url, who = self._target.services["coordinator"], self._target.caller
        page = await self._http.get_object(f"{url}/rounds", who, params={"limit": 1})
        if not page["rounds"]:
            return [passed("rounds", "none was started yet")]
        newest = await self._http.get_object(f"{url}/rounds/{page['rounds'][0]['round_id']}", who)
        self._observed.newest_round = newest
        name, state = newest["round_id"], newest["state"]
        if newest.get("waiting"):
            remedy = f"it goes on by itself once that is back; {self._target.advice.look('coordinator')}"
            return [
                failed(
                    "rounds", f"the newest, {name}, has its updates and waits: {newest['waiting']}", remedy
                )
            ]
        if state != "failed":
            failures = [
                f"{self._name(one['proplet_id'])}: {one['reason']}" for one in newest.get("failures", ())
            ]
            without = f", without {'; '.join(failures)}" if failures else ""
            return [passed("rounds", f"the newest, {name}, is {state}{without}")]
        reason = str(newest.get("reason") or "without a reason")
        return [failed("rounds", f"the newest, {name}, failed: {reason}", self._remedy(newest, reason))]

    def _name(self, proplet_id: str) -> str:
        """What the device is called, where that is known."""
        known = self._target.owner(proplet_id)
        return proplet_id if known is None else known.name

    def _remedy(self, newest: dict[str, Any], reason: str) -> str:
        text = next((remedy for part, remedy in _REMEDIES if part in reason), "")
        if "number" in newest:
            again = f"see propeller experiment show {newest.get('experiment_id')}: it tries its rounds again by itself while it runs"
        else:
            again = f"POST {self._target.services['coordinator']}/rounds/{newest['round_id']}/retry"
        names = {"image": newest.get("task_wasm_image"), "again": again}
        look = self._target.advice.look("coordinator")
        failures: Sequence[Mapping[str, Any]] = newest.get("failures", ())
        if own := [self._name(one["proplet_id"]) for one in failures if _OWN_DATA in str(one["reason"])]:
            look = f"see the log of {', '.join(own)}, on that machine: it names the file, row and column"
        return f"{text.format(**names)}; {look}" if text else look


def presence(proplets: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """That these are there, by name, and which of them take no tasks now."""
    text = f"{len(proplets)} are alive in the manager's channel"
    resting = [name for name, proplet in proplets if (proplet.get("metadata") or {}).get("resting")]
    if not resting:
        return text
    why = "by PROPLET_POLICY (its hours, or a mistake that the log tells) no task begins now on"
    return f"{text}; {why} {', '.join(resting)}"
