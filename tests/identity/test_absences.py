"""How long clients are away, whatever is restarted meanwhile and whatever becomes of the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.identity.absences import CLOCK_STEP_S, AbsenceChanges, Absences, Moment

EXPIRY_S = 1000.0
IDS = ("a", "b", "c")
START = 1.7e9


class World:
    """Clients of a broker, and an identity service that looks at them; time passes as told."""

    def __init__(self) -> None:
        self.elapsed = self.clock_offset = self.started = 0.0
        self.rows: dict[str, float] = {}
        self.left_at: dict[str, float] = dict.fromkeys(IDS, 0.0)
        self.found_away_at: dict[str, float] = {}
        self.writes = 0
        self.restart()

    @property
    def now(self) -> Moment:
        return Moment(self.elapsed - self.started, START + self.elapsed + self.clock_offset)

    def restart(self) -> None:
        """Identity starts anew; its steady clock counts from then on."""
        self.started = self.elapsed
        self.absences = Absences(self.rows, self.now)

    def look(self) -> None:
        """Identity looks at the sessions."""
        self.absences.update(IDS, set(IDS) - self.left_at.keys(), self.now)
        for mqtt_id in self.left_at:
            self.found_away_at.setdefault(mqtt_id, self.elapsed)
        self.store()

    def come_or_go(self, mqtt_id: str) -> None:
        """A client is let in, or goes away."""
        if self.left_at.pop(mqtt_id, None) is None:
            self.left_at[mqtt_id] = self.elapsed
            return
        self.found_away_at.pop(mqtt_id, None)
        self.absences.end(mqtt_id)
        self.store()

    def store(self) -> None:
        """Write what the database lacks, as identity does."""
        changes = self.absences.unstored(self.now)
        if changes:
            self.writes += 1
            self.rows = {k: v for k, v in self.rows.items() if k not in changes.ended} | changes.away
            self.absences.note_stored(changes)

    def overdue(self) -> set[str]:
        return set(self.absences.overdue(EXPIRY_S, self.now))


seconds = st.floats(0, 2 * EXPIRY_S)
events = st.one_of(
    st.tuples(st.just("wait"), seconds),
    st.tuples(st.just("come or go"), st.sampled_from(IDS)),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("look"), st.none()),
)
steps_back = st.tuples(st.just("step back"), seconds)


def happen(world: World, event: tuple[str, object]) -> None:
    match event:
        case "wait", float(duration):
            world.elapsed += duration
        case "step back", float(step):
            world.clock_offset -= step
        case "come or go", str(mqtt_id):
            world.come_or_go(mqtt_id)
        case "restart", _:
            world.restart()
        case _:
            world.look()


@given(st.lists(st.one_of(events, steps_back), max_size=30))
def test_no_session_ends_before_its_client_was_away_for_long_enough(
    happened: list[tuple[str, object]],
) -> None:
    world = World()
    for event in happened:
        happen(world, event)
        for mqtt_id in world.overdue():
            assert world.elapsed - world.left_at[mqtt_id] >= EXPIRY_S - 1e-3


@given(st.lists(events, max_size=30))
def test_a_session_is_overdue_when_its_client_was_found_away_for_long_enough(
    happened: list[tuple[str, object]],
) -> None:
    world = World()
    for event in happened:
        happen(world, event)
        world.look()
        expected = {
            mqtt_id
            for mqtt_id, found in world.found_away_at.items()
            if world.elapsed - found >= EXPIRY_S + 1e-3
        }
        assert expected <= world.overdue()
        assert world.rows.keys() == world.left_at.keys()


@given(st.lists(events, max_size=30))
def test_looks_at_unchanged_clients_write_nothing(happened: list[tuple[str, object]]) -> None:
    world = World()
    for event in happened:
        happen(world, event)
    world.look()
    written = world.writes
    for _ in range(10):
        world.elapsed += EXPIRY_S / 7
        world.look()
    assert world.writes == written


@pytest.mark.parametrize("step", [-5 * EXPIRY_S, 5 * EXPIRY_S])
def test_a_clock_that_was_set_while_identity_ran_changes_nothing(step: float) -> None:
    world = World()
    world.look()
    world.elapsed += EXPIRY_S - 2
    world.clock_offset += step
    world.look()
    world.restart()
    assert world.overdue() == set()
    world.elapsed += 2.001
    assert world.overdue() == set(IDS)


def test_a_time_in_the_future_counts_from_the_start_and_is_corrected() -> None:
    world = World()
    world.rows = {"a": START + 10 * CLOCK_STEP_S}
    world.restart()
    world.look()
    assert world.rows["a"] == world.now.wall
    world.elapsed += EXPIRY_S
    world.restart()
    assert "a" in world.overdue()


def test_a_session_that_is_gone_is_forgotten() -> None:
    absences = Absences({"a": START}, Moment(0.0, START))
    absences.update([], [], Moment(1.0, START + 1))
    assert absences.unstored(Moment(1.0, START + 1)) == AbsenceChanges(ended=frozenset("a"))


def test_what_may_have_been_written_is_deleted_when_the_client_is_back() -> None:
    now = Moment(0.0, START)
    absences = Absences({}, now)
    absences.update(["a"], [], now)
    changes = absences.unstored(now)
    absences.note_storing(changes)  # and it failed
    assert absences.unstored(now) == changes
    absences.end("a")
    assert absences.is_stored("a")
    assert absences.unstored(now) == AbsenceChanges(ended=frozenset("a"))
