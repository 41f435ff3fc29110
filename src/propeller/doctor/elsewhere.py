"""What can be seen of a stack from another machine, by its services' addresses and a login; and what cannot, which is said."""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from propeller import __version__
from propeller.doctor import broker as broker_checks
from propeller.doctor.advice import RemoteAdvice
from propeller.doctor.checks import Ask, Check, Finding, failed, passed, run_checks, skipped
from propeller.doctor.fleet import FleetChecks, RoundChecks, last_heartbeat, presence
from propeller.doctor.services import (
    HTTP_TIMEOUT_S,
    NoAnswerError,
    ServiceChecks,
    address_of,
    explained_errors,
    json_object,
)
from propeller.doctor.target import Client, Observations, Target
from propeller.errors import PropellerError, RefusedError
from propeller.mqtt.address import BrokerAddress
from propeller.process.certificates import parse_certificate
from propeller.process.tls import WARN_DAYS, stack_trust
from propeller.protocol.topics import Channel
from propeller.sdk import AsyncPropeller
from propeller.sdk.addresses import OPERATED, PORTS, REGISTRY
from propeller.sdk.connection import Connection

_ASK_THERE = "run 'propeller doctor' on the stack's machine"
_THERE = f"cannot be seen from here: {_ASK_THERE}"

_UNSEEN = ("disk", "keys", "channel", "image")
"""What only the doctor on the stack's machine looks at."""

_OPERATED = tuple(name.replace("_", "-") for name in (*OPERATED, REGISTRY))
"""Services that no client needs: they may be out of reach."""


async def diagnose_elsewhere(
    fl: AsyncPropeller, advice: RemoteAdvice, ca_cert: Path | None, participants: Sequence[str] | None = None
) -> list[Finding]:
    """Examine a stack from another machine.

    Args:
        fl: a client of it.
        advice: how it is fixed.
        ca_cert: of the stack's authority; ``None`` for ``PROPELLER_CA_CERT``, or those that systems trust.
        participants: the ids to examine; else those of a round that did not complete.
    """
    login = fl.connection.login
    user = "" if login is None else login.user
    urls = {name.replace("_", "-"): url for name, url in fl.connection.urls.items()}
    channel, devices = Channel("unknown", "unknown"), list[dict[str, Any]]()
    problem = ""
    try:
        # Once, and before all else: whoever tries a wrong password for each question is soon refused for longer.
        async with asyncio.timeout(HTTP_TIMEOUT_S):
            channel = Channel(await fl.devices.domain_id(), "unknown")
            with contextlib.suppress(PropellerError):  # viewers may not: then ids are shown for names
                devices = await fl.devices.list()
    except PropellerError as error:
        problem = str(error)
    except TimeoutError:
        problem = f"identity did not answer within {HTTP_TIMEOUT_S:g} s"
    target = Target(
        settings=f"{', '.join(urls.values())}, as {user or 'nobody in particular'}",
        process="",
        services={name: url for name, url in urls.items() if name != "identity"},
        identity={"users": urls["identity"]},
        broker=BrokerAddress(*address_of(urls["identity"])),  # not known here, and not asked
        clients=tuple(Client(one["name"], one["id"], "", channel, "", "") for one in devices),
        admin=None,
        image="",
        folder=None,
        advice=advice,
        operator=Client(user, "", "", channel, "", ""),
    )
    return await run_checks(_checks(fl, target, problem, ca_cert, participants))


def _checks(
    fl: AsyncPropeller,
    target: Target,
    login_problem: str,
    ca_cert: Path | None,
    participants: Sequence[str] | None,
) -> list[Check]:
    observed, http = Observations(), LoginClient(fl.connection)
    services = ServiceChecks(target, http, observed)
    fleet = FleetChecks(target, http, observed, participants)
    rounds = RoundChecks(target, http, observed)
    here = ElsewhereChecks(fl, target, observed, services, http)
    names = (*(name for name in target.services if name not in _OPERATED), "identity")
    # Without a login, as on loopback, each service knows by itself who asks.
    known = () if fl.connection.login is None else ("login",)

    async def settings() -> list[Finding]:
        return [passed("settings", target.settings)]

    async def login() -> list[Finding]:
        if not login_problem:
            return [passed("login", f"{target.caller.name} is let in")]
        return [
            failed("login", login_problem, "give the right --user and password, or log in: propeller login")
        ]

    async def subscriptions() -> list[Finding]:
        return broker_checks.subscriptions(observed)

    async def unseen(what: str) -> list[Finding]:
        return [skipped(what, _THERE)]

    def health(name: str) -> Ask:
        return services.identity if name == "identity" else partial(services.service, name)

    return [
        Check("settings", settings),
        *(Check(name, health(name)) for name in names),
        *(Check(name, partial(here.operated, name)) for name in _OPERATED),
        Check("broker", partial(seen_broker, observed), ("identity",)),
        Check("certificate", partial(here.certificates, ca_cert)),
        *([Check("login", login)] if known else []),
        Check("versions", here.versions, known, names),
        Check("client ids", fleet.duplicates, ("identity", *known)),
        Check("subscriptions", subscriptions, ("identity",)),
        Check("manager mqtt", fleet.connection, ("manager",)),
        Check("proplets", _explained(here.proplets), ("manager mqtt", *known)),
        Check("rounds", rounds.rounds, ("coordinator", *known)),
        Check("participants", fleet.participants, after=("proplets", "rounds")),
        Check("model 0", rounds.model, ("model-registry", *known)),
        Check(
            "datasets", _explained(here.datasets), ("data-store", "manager mqtt", *known), after=("proplets",)
        ),
        Check("clocks", services.clocks, after=(*names, "proplets")),
        *(Check(what, partial(unseen, what)) for what in _UNSEEN),
    ]


async def seen_broker(observed: Observations) -> list[Finding]:
    """Whether the broker is there, as identity sees it, which it asks at each connection."""
    if observed.identity_disconnected is None:
        return [skipped("broker", _THERE)]
    if observed.identity_disconnected:
        fix = "on its machine, see why in its log and identity's: propeller logs --service broker --service identity"
        return [failed("broker", "identity has no connection to it: nobody can connect", fix)]
    return [passed("broker", "identity is connected to it")]


def _explained(ask: Ask) -> Ask:
    """The same question; that a service refuses it, or does not answer, is told as it says it."""

    async def explained() -> list[Finding]:
        try:
            return await ask()
        except PropellerError as error:
            raise NoAnswerError(str(error)) from None

    return explained


class LoginClient:
    """Asks as ``services.HttpClient`` does, but as the user of a login."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, url: str, who: Client | None = None, **options: Any) -> httpx.Response:  # noqa: ARG002 - the login's user asks
        """The answer to a GET.

        Raises:
            NoAnswerError: there is none, or one that is no success.
        """
        if url.endswith("/health"):  # open to anyone: it tells of its service alone, not of the login
            with explained_errors(url):
                return await self._connection.transport.send("GET", url, auth=None, timeout=HTTP_TIMEOUT_S)
        service, path = self._split(url)
        try:
            return await self._connection.send("GET", service, path, timeout=HTTP_TIMEOUT_S, **options)
        except PropellerError as error:
            raise NoAnswerError(str(error)) from None

    async def get_object(self, url: str, who: Client | None = None, **options: Any) -> dict[str, Any]:
        """The JSON object that a GET gives.

        Raises:
            NoAnswerError: there is no answer, or another.
        """
        return json_object(await self.get(url, who, **options), url)

    async def get_start(self, url: str, who: Client) -> tuple[int, bytes | None]:
        """The status of a GET and its body. Raises as ``get``."""
        answer = await self.get(url, who)
        return answer.status_code, answer.content

    def _split(self, url: str) -> tuple[str, str]:
        known = self._connection.urls.items()
        service, address = max(
            (one for one in known if url.startswith(one[1])), key=lambda found: len(found[1])
        )
        return service, url[len(address) :]


class ElsewhereChecks:
    """What the doctor of the stack's machine asks in another way."""

    def __init__(
        self,
        fl: AsyncPropeller,
        target: Target,
        observed: Observations,
        services: ServiceChecks,
        http: LoginClient,
    ) -> None:
        self._fl, self._target, self._observed = fl, target, observed
        self._services, self._http = services, http

    async def operated(self, name: str) -> list[Finding]:
        """Whether a service answers that no client needs, if it can be reached from here."""
        url = self._target.services.get(name)
        if url is None:
            given = f"--url {name.replace('-', '_')}=URL"
            return [skipped(name, f"its address is not known: give it ({given}), or {_ASK_THERE}")]
        try:
            answer = await self._http.get(f"{url}/health")
        except NoAnswerError as error:
            return [skipped(name, f"{error}; it may be out of reach on purpose: {_ASK_THERE}")]
        if name not in OPERATED and answer.status_code == httpx.codes.NOT_FOUND:
            return [skipped(name, f"{url} is a registry of another kind")]
        return await self._services.service(name)

    async def certificates(self, ca_cert: Path | None) -> list[Finding]:
        """Until when what each server shows is good; whether it is believed is told by whoever calls it."""
        urls = {self._fl.url(name) for name in self._fl.services if name in PORTS}
        secure = sorted({address_of(url) for url in urls if url.startswith("https://")})
        if not secure:
            return [skipped("certificate", "the services speak no TLS")]
        context = stack_trust(ca_cert) or ssl.create_default_context()
        ends = await asyncio.gather(*(_end_of(host, port, context) for host, port in secure))
        findings = [one for one in ends if isinstance(one, Finding)]
        if findings:
            return findings
        first = min(one for one in ends if isinstance(one, str))
        return [passed("certificate", f"those of {len(secure)} addresses are good, the first until {first}")]

    async def versions(self) -> list[Finding]:
        """Whether the services have this version of Propeller."""
        found: dict[str, str] = {}
        for name in filter(PORTS.__contains__, self._fl.services):
            try:
                described = await self._fl.connection.ask("GET", name, "/openapi.json")
                found[name.replace("_", "-")] = str(described["info"]["version"])
            except (PropellerError, KeyError, TypeError):
                continue
        if not found:
            return [skipped("versions", "no service told its version")]
        others = {name: version for name, version in found.items() if version != __version__}
        if not others:
            return [passed("versions", f"{len(found)} services have {__version__}, as this machine")]
        shown = ", ".join(f"{name} {version}" for name, version in others.items())
        return [
            failed(
                "versions",
                f"this machine has {__version__}, and there is {shown}",
                "install the same version",
            )
        ]

    async def proplets(self) -> list[Finding]:
        """Whether every device that has joined is alive, and who is waited for."""
        known = {str(one["id"]): one for one in await self._fl.proplets()}
        self._observed.proplets = known
        try:
            devices = await self._fl.devices.list()
        except RefusedError:
            devices = [{**one, "state": "joined"} for one in known.values()]
        if not devices:
            return [skipped("proplets", "there should be none")]
        findings = [self._missing(one, known.get(one["id"])) for one in devices if _is_missing(one)]
        if findings:
            return findings
        there = [(one["name"], known[one["id"]]) for one in devices if one["alive"]]
        waiting = [one["name"] for one in devices if one["state"] == "waiting"]
        text = presence(there) + (f"; not joined yet: {', '.join(waiting)}" if waiting else "")
        return [passed("proplets", text)]

    def _missing(self, device: Mapping[str, Any], proplet: Mapping[str, Any] | None) -> Finding:
        name = str(device["name"])
        if device["state"] == "expired":
            fix = f"propeller device remove {name}, then propeller device add {name}"
            return failed("proplets", f"{name} has not joined, and its token has expired", fix)
        since = (
            "it is not registered with the manager"
            if proplet is None
            else f"not alive{last_heartbeat(proplet)}"
        )
        fix = "see that it runs and reaches the broker: on it, its log ('journalctl -u propeller-device', 'propeller logs')"
        return failed("proplets", f"{name} is {since}" if proplet else f"{name}: {since}", fix)

    async def datasets(self) -> list[Finding]:
        """Whether each device that is there has data to learn from."""
        stored = set((await self._fl.connection.ask("GET", "data_store", "/datasets"))["clients"])
        there = [one for one in (self._observed.proplets or {}).values() if one["alive"]]
        without = [
            one["name"]
            for one in there
            if one["id"] not in stored and not (one.get("metadata") or {}).get("own_data")
        ]
        if not without:
            return [passed("datasets", f"{len(there)} of {len(there)} proplets have data")]
        fix = "give it some: data.files of an experiment, put_dataset in Python, or 'propeller join --data' on it"
        return [failed("datasets", f"{name} has no dataset", fix) for name in without]


def _is_missing(device: Mapping[str, Any]) -> bool:
    return device["state"] == "expired" or (device["state"] == "joined" and not device["alive"])


async def _end_of(host: str, port: int, context: ssl.SSLContext) -> str | Finding:
    """The day on which a server's certificate ends, or what is wrong with it."""
    address = f"{host}:{port}"
    try:
        async with asyncio.timeout(4.0):
            _reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        remedy = "name the stack's authority with --ca, or see that the clock is right and the certificate made for this name"
        return failed("certificate", f"{address}: {error.verify_message}", remedy)
    except (OSError, TimeoutError) as error:
        return failed("certificate", f"{address}: {str(error) or 'no answer'}", "see what fails above")
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    found = parse_certificate(shown, Path(address))
    if found.days_left() < WARN_DAYS:
        fix = "on the stack's machine, end the stack and start it again: it makes another one; or renew yours"
        return failed("certificate", f"{address} {found.explain_end()}", fix)
    return f"{found.not_after:%Y-%m-%d}"
