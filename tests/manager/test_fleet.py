"""The fleet: who lives, by heartbeats and last wills."""

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from propeller.manager.fleet import Fleet
from propeller.manager.names import NamedClients, Naming
from propeller.process.clock import steady_now
from propeller.protocol.proplet import HeartbeatMessage, PropletMetadata, Registration
from propeller.store.database import Database


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(database: Database, clock: Clock) -> Fleet:
    return Fleet(database, interval_s=10, clock=clock)


async def test_two_missed_heartbeats_are_forgiven_and_three_are_not(fleet: Fleet, clock: Clock) -> None:
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    clock.pass_(29.9)
    assert fleet.is_alive("p")
    clock.pass_(0.2)
    assert not fleet.is_alive("p")
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    assert fleet.is_alive("p")


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400.0, -3600.0, 3600.0, 10 * 365 * 86400.0])
async def test_a_wall_clock_that_is_set_makes_nobody_dead(
    database: Database, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    fleet, real = Fleet(database, interval_s=10), time.time
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert fleet.is_alive("p")
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="q"), directed=True)
    assert [proplet.id for proplet in fleet.alive()] == ["p", "q"]
    assert fleet.clock is steady_now, "Python's own datetime cannot be set in a test"


async def test_a_proplet_that_beats_at_another_rate_is_judged_by_that(fleet: Fleet, clock: Clock) -> None:
    await fleet.register(
        Registration(proplet_id="p", metadata=PropletMetadata(liveliness_interval=60)), directed=True
    )
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    clock.pass_(179)
    assert fleet.is_alive("p")
    clock.pass_(2)
    assert not fleet.is_alive("p")


@pytest.mark.parametrize("interval", [3601, 1e9])
async def test_an_interval_that_makes_no_sense_is_not_taken(
    fleet: Fleet, clock: Clock, interval: float
) -> None:
    await fleet.register(
        Registration(proplet_id="p", metadata=PropletMetadata(liveliness_interval=interval)), directed=True
    )
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    clock.pass_(31)
    assert not fleet.is_alive("p")


async def test_a_last_will_is_understood_at_once_and_a_heartbeat_after_it_too(fleet: Fleet) -> None:
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p", status="offline"), directed=True)
    assert not fleet.is_alive("p")
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    assert fleet.is_alive("p")


async def test_a_last_will_makes_no_proplet(fleet: Fleet) -> None:
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="manager-id", status="offline"), directed=True)
    assert fleet.all() == []


async def test_registering_is_no_heartbeat(fleet: Fleet) -> None:
    await fleet.register(Registration(proplet_id="p"), directed=True)
    assert not fleet.is_alive("p")


async def test_registering_again_replaces_what_a_proplet_said_of_itself(fleet: Fleet) -> None:
    await fleet.register(
        Registration(proplet_id="p", metadata=PropletMetadata(location="lab")), directed=True
    )
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    proplet = fleet.get("p")
    assert proplet is not None
    assert (proplet.metadata or {})["location"] == "lab"
    await fleet.register(Registration(proplet_id="p"), directed=True)
    assert proplet.metadata == {"directed": True}
    assert proplet.is_alive(fleet.clock())


@pytest.mark.parametrize("said", [True, False])
async def test_where_a_proplet_speaks_tells_whether_it_is_directed_not_what_it_says(
    fleet: Fleet, database: Database, said: bool
) -> None:
    message = Registration(proplet_id="p", metadata=PropletMetadata(directed=said))
    await fleet.register(message, directed=False)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="h"), directed=True)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="s"), directed=False)
    assert {one.id: one.directed for one in fleet.all()} == {"p": False, "h": True, "s": False}
    await fleet.register(message, directed=True)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    # Nothing that is said elsewhere changes it from now on.
    await fleet.register(Registration(proplet_id="p"), directed=False)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p", status="offline"), directed=False)
    proplet = fleet.get("p")
    assert proplet is not None
    assert (proplet.directed, proplet.reads_text_inputs, len(proplet.heartbeats)) == (True, True, 1)
    assert proplet.is_alive(fleet.clock())
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=False)
    assert len(proplet.heartbeats) == 1
    again = Fleet(database)
    await again.load()
    assert {one.id: one.directed for one in again.all()} == {"p": True, "h": True, "s": False}


@pytest.mark.parametrize("told", [None, "", "  ", "a\0b", "a\nb"])
async def test_a_proplet_is_called_as_it_calls_itself_or_has_a_name_made_from_its_id(
    fleet: Fleet, database: Database, told: str | None
) -> None:
    await fleet.register(Registration(proplet_id="p", metadata=PropletMetadata(name=told)), directed=True)
    proplet = fleet.get("p")
    assert proplet is not None
    made = proplet.name
    assert re.fullmatch(r"[a-z]+-[a-z]+-[0-9]+", made)
    await fleet.register(
        Registration(proplet_id="p", metadata=PropletMetadata(name=" proplet-1 ")), directed=True
    )
    again = Fleet(database)
    await again.load()
    assert [one.name for one in (proplet, *again.all())] == ["proplet-1", "proplet-1"]
    await fleet.register(
        Registration(proplet_id="p", metadata=PropletMetadata(name="n" * 1000)), directed=True
    )
    assert proplet.name == "n" * 64
    await fleet.register(Registration(proplet_id="p"), directed=True)
    assert proplet.name == made


async def test_create_and_first_heartbeat_at_the_same_time_make_one_proplet(fleet: Fleet) -> None:
    ids = [f"p{number}" for number in range(5)]
    await asyncio.gather(
        *(fleet.record_heartbeat(HeartbeatMessage(proplet_id=one), directed=True) for one in ids),
        *(fleet.register(Registration(proplet_id=one, namespace="lab"), directed=True) for one in ids),
    )
    assert sorted(one.id for one in fleet.all()) == ids
    assert all(one.namespace == "lab" for one in fleet.all())


async def test_the_fleet_is_as_it_was_after_a_restart(fleet: Fleet, database: Database, clock: Clock) -> None:
    for proplet_id in ("b", "a", "c"):
        await fleet.register(
            Registration(proplet_id=proplet_id, metadata=PropletMetadata(directed=proplet_id == "a")),
            directed=True,
        )
    for _ in range(12):
        await fleet.record_heartbeat(HeartbeatMessage(proplet_id="a"), directed=True)
        clock.pass_(1)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="c"), directed=True)
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="c", status="offline"), directed=True)
    await fleet.write_heartbeats()

    again = Fleet(database, clock=clock)
    await again.load()
    assert again.all() == fleet.all()
    assert [one.id for one in again.all()] == ["b", "a", "c"]
    assert [again.is_alive(one) for one in ("b", "a", "c")] == [False, True, False]


async def test_a_removed_proplet_comes_back_by_its_heartbeat(fleet: Fleet) -> None:
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    await fleet.remove("p")
    assert fleet.all() == []
    await fleet.write_heartbeats()
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    assert fleet.is_alive("p")


async def test_a_name_that_was_given_holds_until_the_device_says_another(
    fleet: Fleet, database: Database
) -> None:
    async def register(name: str) -> None:
        await fleet.register(Registration(proplet_id="p", metadata=PropletMetadata(name=name)), directed=True)

    await register("ward-3")
    proplet = fleet.get("p")
    assert proplet is not None
    await fleet.rename(proplet, "ward-4")
    assert proplet.name == "ward-4"
    await register("ward-3")  # it has lost its connection, and knows nothing of it yet
    assert proplet.name == "ward-4"
    again = Fleet(database, interval_s=10)
    await again.load()
    assert [one.name for one in again.all()] == ["ward-4"]
    await register("ward-4")  # it was started again, and asked identity
    await register("ward-3")  # somebody has given it the old one back meanwhile
    assert proplet.name == "ward-3"


NAMED = NamedClients({"a": Naming("ward-a", ("hospital",)), "b": Naming("ward-b")})


@pytest.fixture
async def named(database: Database, clock: Clock) -> Fleet:
    """A fleet whose proplets identity names, with ``b``, which says that it is ``a``."""
    fleet = Fleet(database, interval_s=10, named_by_identity=True, clock=clock)
    assert fleet.waits_for_names
    await fleet.know(NAMED)
    says = PropletMetadata(name="ward-a", tags=["hospital", "gpu"])
    doubts = await fleet.register(Registration(proplet_id="b", metadata=says), directed=True)
    assert doubts is not None
    assert "'ward-a' is a" in doubts
    await fleet.record_heartbeat(HeartbeatMessage(proplet_id="a"), directed=True)
    return fleet


def called(fleet: Fleet) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {one.id: (one.name, one.tags) for one in fleet.all()}


async def test_what_identity_calls_proplets_holds_whatever_they_say_and_after_a_restart(
    named: Fleet, database: Database, clock: Clock
) -> None:
    expected = {"b": ("ward-b", ("gpu",)), "a": ("ward-a", ("hospital",))}
    assert called(named) == expected
    again = Fleet(database, named_by_identity=True, clock=clock)
    await again.load()
    assert called(again) == expected
    assert not again.waits_for_names
    assert again.is_named("a")
    says = PropletMetadata(name="ward-a", tags=["hospital", "gpu"])
    assert await again.register(Registration(proplet_id="b", metadata=says), directed=True) is None
    assert called(again) == expected


async def test_names_and_tags_follow_identity(named: Fleet, database: Database) -> None:
    await named.know(NamedClients({"a": Naming("ward-a"), "b": Naming("ward-9"), "c": Naming("x", ("gpu",))}))
    assert called(named) == {"b": ("ward-9", ("hospital",)), "a": ("ward-a", ())}
    await named.know(
        NamedClients({"b": Naming("ward-a", ("hospital",))})
    )  # a is deleted, its name given to b
    assert called(named)["b"] == ("ward-a", ("hospital", "gpu"))
    assert called(named)["a"][0] not in {"ward-a", "ward-b", "ward-9"}
    again = Fleet(database, named_by_identity=True)
    await again.load()
    assert called(again) == called(named)
    assert not again.is_named("c")


async def test_a_name_that_was_given_before_identity_was_asked_gives_way(
    fleet: Fleet, database: Database
) -> None:
    await fleet.register(Registration(proplet_id="b", metadata=PropletMetadata(name="x")), directed=True)
    proplet = fleet.get("b")
    assert proplet is not None
    await fleet.rename(proplet, "ward-a")
    later = Fleet(database, named_by_identity=True)
    await later.load()
    assert called(later)["b"][0] not in {"x", "ward-a"}, "nobody has said yet that it is"
    await later.know(NAMED)
    assert called(later)["b"][0] == "ward-b"
    await later.register(Registration(proplet_id="b", metadata=PropletMetadata(name="x")), directed=True)
    assert called(later)["b"][0] == "ward-b"
