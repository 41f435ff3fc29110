"""All checks, put together."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from propeller.doctor import broker as broker_checks
from propeller.doctor import machine
from propeller.doctor.broker import BrokerChecks, IdentityLookup
from propeller.doctor.checks import Ask, Check, Finding, Status, failed, passed, run_checks, waits_for
from propeller.doctor.fleet import FleetChecks, RoundChecks
from propeller.doctor.image import LIMIT_S as IMAGE_LIMIT_S
from propeller.doctor.image import ImageCheck
from propeller.doctor.services import HttpClient, ServiceChecks, address_of
from propeller.doctor.target import Observations, SourceError, Target
from propeller.stack.ports import GUIDE_PORTS
from propeller.stack.services import HTTP_SERVICES

CHECKS_OF_A_RUNNING_STACK = (
    "certificate",
    "broker",
    *HTTP_SERVICES,
    "keys",
    "channel",
    "client ids",
    "subscriptions",
    "manager mqtt",
    "proplets",
    "rounds",
    "participants",
    "model 0",
    "datasets",
    "image",
    "clocks",
)
"""The checks of a stack that runs, in the order in which they are shown."""


async def diagnose(
    source: Callable[[], Target],
    *,
    folder: Path | None = None,
    image: str | None = None,
    participants: Sequence[str] | None = None,
) -> list[Finding]:
    """Examine a stack.

    Args:
        source: says what there is to examine; raises ``SourceError``.
        folder: the state folder, whose disk is looked at in any case.
        image: the program to ask for; else one that the stack uses.
        participants: the ids to examine; else those of a round that did not complete.
    """
    try:
        target = source()
    except SourceError as error:
        return _without_target(error, folder)
    observed = Observations()
    urls = {**target.services, **target.identity}
    async with HttpClient(*urls.values()) as http:
        return await run_checks(_checks(target, http, observed, image, participants))


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.status is not Status.FAIL for finding in findings)


def _without_target(error: SourceError, folder: Path | None) -> list[Finding]:
    found = error.finding
    findings = [found]
    if folder is not None:
        findings += machine.disk(folder)
        if not error.running:
            remedy = f"end what listens there, or take free ports: propeller up --state {folder} --ports auto"
            findings += machine.free_ports(GUIDE_PORTS, remedy)
    return findings + [waits_for(what, found.what) for what in CHECKS_OF_A_RUNNING_STACK]


def _checks(
    target: Target,
    http: HttpClient,
    observed: Observations,
    image: str | None,
    participants: Sequence[str] | None,
) -> list[Check]:
    services = ServiceChecks(target, http, observed)
    broker = BrokerChecks(target, IdentityLookup(target), observed)
    fleet = FleetChecks(target, http, observed, participants)
    rounds = RoundChecks(target, http, observed)

    async def settings() -> list[Finding]:
        return [passed("settings", target.settings)]

    async def certificate() -> list[Finding]:
        return machine.certificate(target.certificate)

    async def stack() -> list[Finding]:
        return await _runs(target)

    async def disk() -> list[Finding]:
        return machine.disk(target.folder)

    async def subscriptions() -> list[Finding]:
        return broker_checks.subscriptions(observed)

    def check(what: str, ask: Ask, *needs: str, after: tuple[str, ...] = (), **options: float) -> Check:
        return Check(what, ask, ("stack", *needs), after, **options)

    return [
        Check("settings", settings),
        Check("disk", disk),
        Check("stack", stack),
        check("certificate", certificate),
        check("broker", broker.broker),
        *(
            check(name, services.identity if name == "identity" else partial(services.service, name))
            for name in HTTP_SERVICES
        ),
        check("keys", broker.keys, "broker", "identity"),
        check("channel", broker.channel, after=("keys",)),
        check("client ids", fleet.duplicates, "identity", "broker"),
        check("subscriptions", subscriptions, "identity"),
        check("manager mqtt", fleet.connection, "manager", "broker", after=("channel",)),
        check("proplets", fleet.proplets, "manager mqtt"),
        check("rounds", rounds.rounds, "coordinator"),
        check("participants", fleet.participants, after=("proplets", "rounds")),
        check("model 0", rounds.model, "model-registry"),
        check("datasets", fleet.datasets, "data-store", after=("proplets",)),
        check(
            "image",
            ImageCheck(target, observed, image).image,
            "proxy",
            after=("channel", "rounds"),
            limit_s=IMAGE_LIMIT_S,
        ),
        check("clocks", services.clocks, after=(*HTTP_SERVICES, "proplets")),
    ]


async def _runs(target: Target) -> list[Finding]:
    """Whether anything listens where the stack should."""
    broker = target.broker
    addresses = {"broker": (broker.host, broker.port)}
    addresses |= {name: address_of(url) for name, url in target.services.items()}
    if await machine.listening_names(addresses):
        return [passed("stack", target.process)]
    shown = ", ".join(f"{port} ({name})" for name, (_, port) in addresses.items())
    return [failed("stack", f"nothing listens on {broker.host}: {shown}", target.advice.start())]
